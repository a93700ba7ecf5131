# Every command makes .venv on first use. Without make (Windows): python -m tools.run, tools.lab, tools.test, tools.save.
# Another Python: make run PYTHON=python3.12        Options: make run ARGS=2   make lab ARGS="--fresh 2.3"   make test ARGS="-k mask"
PYTHON ?= python3
ARGS ?=

.PHONY: help run lab quick test test-all save clean

help:
	@echo "make lab       open the first lesson in JupyterLab, your own copy of it in work/ (ARGS=2.3: another one)"
	@echo "make run       run every lesson, write the results to build/ (ARGS=2: a chapter; LLM_SCALE=full: the long version)"
	@echo "make quick     after each edit, in a minute: style, saved notebooks, parity, the fast tests"
	@echo "make test      prove all of it"
	@echo "make test-all  the same, then in the other number format, without network and data, and with Colab's versions"
	@echo "make save      run every lesson and save its outputs in place (for maintainers; needs the real data)"
	@echo "make clean     remove build/ and caches; .venv, data/ and work/ stay"

run:
	@$(PYTHON) -m tools.run $(ARGS)

lab:
	@$(PYTHON) -m tools.lab $(ARGS)

quick:
	@$(PYTHON) -m tools.test --quick $(ARGS)

test:
	@$(PYTHON) -m tools.test $(ARGS)

test-all:
	@$(PYTHON) -m tools.test --all $(ARGS)

save:
	@$(PYTHON) -m tools.save --all $(ARGS)

clean:
	@$(PYTHON) -m tools.clean $(ARGS)
