// The chat page. Model text reaches the page only through textContent: whatever it holds, it stays text.

const $ = (id) => document.getElementById(id);
const IDEAS = ["What is the capital of France?", "Explain to a child why the sky is blue.",
  "Write two sentences about a lighthouse.", "Name three animals that can fly."];
const END_MARKS = ["<|im_end|>", "<|endoftext|>"];

const SLIDERS = [
  { id: "temperature", name: "Temperature", min: 0, max: 2, step: 0.05, usual: 0.7, says: (x) =>
    x === 0 ? "Always the most likely token: the same answer each time."
      : x < 0.5 ? "Nearly always one of the most likely tokens." : x <= 1
        ? "Draws among likely tokens; some surprise." : "Unlikely tokens get a real chance. Expect nonsense." },
  { id: "top_p", name: "Top-p", min: 0.05, max: 1, step: 0.05, usual: 0.95, says: (x) =>
    x === 1 ? "Off: every token may be drawn."
      : `Only the most likely tokens that together have ${Math.round(x * 100)} % of the probability.` },
  { id: "top_k", name: "Top-k", min: 0, max: 100, step: 1, usual: 0, says: (x) =>
    x === 0 ? "Off: any number of tokens may be drawn from." : x === 1
      ? "Only the most likely token." : `Only the ${x} most likely tokens.` },
  { id: "min_p", name: "Min-p", min: 0, max: 0.5, step: 0.01, usual: 0, says: (x) =>
    x === 0 ? "Off." : `Only tokens at least ${Math.round(x * 100)} % as likely as the most likely one.` },
  { id: "repetition_penalty", name: "Repetition penalty", min: 1, max: 1.5, step: 0.05, usual: 1, says: (x) =>
    x === 1 ? "Off: the model may repeat itself."
      : "Words that already stand in the conversation become less likely, yours too." },
  { id: "presence_penalty", name: "Presence penalty", min: -2, max: 2, step: 0.1, usual: 0, says: (x) =>
    x === 0 ? "Off." : x > 0 ? "A token that the answer already holds becomes less likely, once."
      : "A token that the answer already holds becomes more likely." },
  { id: "max_tokens", name: "Longest answer", min: 16, max: 1024, step: 16, usual: 256, says: (x) =>
    `At most ${x} tokens, some ${Math.round(x * 0.75 / 10) * 10} English words; then it is cut off.` },
];

const state = { models: [], compare: false, turns: [], running: null, key: sessionStorage.getItem("key") || "" };

// --- small helpers

function make(tag, settings = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(settings)) {
    if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function button(text, act, settings = {}) {
  return make("button", { type: "button", text, on: { click: act }, ...settings });
}

function tell(words) { $("status").textContent = words; }

function trouble(words) {
  $("trouble").textContent = words || "";
  $("trouble").hidden = !words;
}

/** What went wrong, in words, of an answer with an error status. */
async function inWords(response) {
  let said = "";
  try { said = (await response.json()).error.message; } catch { /* no JSON: the status must do */ }
  if (response.status === 429) return "The server is busy with others. Try again in a moment.";
  if (response.status === 503) return `The server cannot answer now: ${said || "try again later"}.`;
  if (response.status >= 500) return "Something broke in the server. Its window says what.";
  return `The server did not accept this: ${said || `status ${response.status}`}.`;
}

async function ask(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  const how = body ? { method: "POST", headers, body: JSON.stringify(body), signal } : { headers, signal };
  let response;
  try {
    response = await fetch(path, how);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.status === 401) {
    await askForKey();
    return ask(path, body, signal);
  }
  if (!response.ok) throw new Error(await inWords(response));
  return response;
}

function askForKey() {
  return new Promise((go) => {
    $("key").value = "";
    $("key-dialog").addEventListener("close", () => {
      state.key = $("key").value.trim();
      sessionStorage.setItem("key", state.key);
      go();
    }, { once: true });
    $("key-dialog").showModal();
  });
}

// --- settings

function usualSettings() { return Object.fromEntries(SLIDERS.map((one) => [one.id, one.usual])); }

function readSettings() {
  const body = Object.fromEntries(SLIDERS.map((one) => [one.id, Number($(one.id).value)]));
  const seed = $("seed").value.trim();
  if (/^-?\d{1,15}$/.test(seed)) body.seed = Number(seed);
  return body;
}

function showSlider(one) {
  const value = Number($(one.id).value);
  $(`${one.id}-value`).textContent = value;
  $(`${one.id}-says`).textContent = one.says(value);
}

function keepSettings() {
  localStorage.setItem("settings", JSON.stringify({ ...readSettings(), system: $("system").value, seed: $("seed").value }));
}

function buildSettings() {
  for (const one of SLIDERS) {
    const slider = make("input", { type: "range", id: one.id, min: one.min, max: one.max, step: one.step,
      "aria-describedby": `${one.id}-says`, on: { input: () => { showSlider(one); keepSettings(); } } });
    $("sliders").append(make("div", { class: "field" },
      make("label", { for: one.id }, make("span", { text: one.name }), make("output", { id: `${one.id}-value`, for: one.id })),
      slider, make("p", { id: `${one.id}-says` })));
  }
  let kept = {};
  try { kept = JSON.parse(localStorage.getItem("settings")) || {}; } catch { /* the usual ones */ }
  fillSettings({ ...usualSettings(), ...kept });
  $("system").value = typeof kept.system === "string" ? kept.system : "";
  $("seed").value = typeof kept.seed === "string" ? kept.seed : "";
  $("system").addEventListener("input", keepSettings);
  $("seed").addEventListener("input", () => {
    const fits = /^(-?\d{1,15})?$/.test($("seed").value.trim());
    $("seed").setAttribute("aria-invalid", !fits);
    $("seed-says").textContent = fits ? "The same seed, settings and words give the same answer again."
      : "A seed is a whole number with at most 15 digits; this one is not used.";
    keepSettings();
  });
  $("reset").addEventListener("click", () => { fillSettings(usualSettings()); keepSettings(); });
}

function fillSettings(values) {
  for (const one of SLIDERS) {
    $(one.id).value = Number.isFinite(values[one.id]) ? values[one.id] : one.usual;
    showSlider(one);
  }
}

function toggleSettings(open) {
  $("settings").hidden = !open;
  $("open-settings").setAttribute("aria-expanded", open);
  (open ? $("system") : $("open-settings")).focus();
}

// --- what is said: turns, each with one answer per model, each answer with versions

function newTurn(words) {
  const names = state.compare ? [$("model").value, $("other").value] : [$("model").value];
  const turned = state.compare && crypto.getRandomValues(new Uint8Array(1))[0] % 2 === 1; // who stands left is drawn
  const order = turned ? [1, 0] : [...names.keys()];
  return { words, answers: order.map((lane) => ({ lane, model: names[lane], versions: [], shown: 0 })), vote: null };
}

const version = (answer) => answer.versions[answer.shown];
const textOf = (made) => made.tokens.map((token) => token.text).join("");

/** The conversation before turn `t`, as one of the models has lived it, with the question of turn `t`. */
function messagesUntil(t, lane) {
  const system = $("system").value.trim(), messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of state.turns.slice(0, t)) {
    const answer = turn.answers.find((one) => one.lane === lane) || turn.answers[0];
    messages.push({ role: "user", content: turn.words });
    if (version(answer)) messages.push({ role: "assistant", content: textOf(version(answer)) });
  }
  return [...messages, { role: "user", content: state.turns[t].words }];
}

// --- asking the model

/** Let `answer` of turn `t` grow, as a new version; `begin` are tokens that stand already. */
async function grow(t, answer, begin = []) {
  const made = { tokens: [...begin], begun: begin.length, reason: null, notes: [], error: null, first: null, last: null, asked: performance.now() };
  answer.versions.push(made);
  answer.shown = answer.versions.length - 1;
  draw(t);
  const body = { ...readSettings(), model: answer.model, messages: messagesUntil(t, answer.lane), stream: true,
    logprobs: true, top_logprobs: 8 };
  if (begin.length) body.prefix_token_ids = begin.map((token) => token.id);
  try {
    const response = await ask("v1/chat/completions", body, state.running.signal);
    for await (const event of eventsOf(response)) {
      if (event.error) throw new Error(`The answer broke off: ${event.error.message}.`);
      made.notes.push(...(event.notes || []));
      const choice = event.choices[0];
      if (!choice) continue;
      for (const entry of choice.logprobs?.content || []) {
        made.first ??= performance.now();
        made.last = performance.now();
        made.tokens.push({ text: entry.token, id: entry.id, bytes: entry.bytes, logprob: entry.logprob,
          top: entry.top_logprobs });
        addToken(t, answer, made, made.tokens.length - 1);
      }
      made.reason = choice.finish_reason || made.reason;
    }
    made.reason ??= "broken";
  } catch (error) {
    made.reason = error.name === "AbortError" ? "stopped" : "broken";
    if (made.reason === "broken") made.error = error.message;
  }
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const lines = held.split("\n\n");
    held = lines.pop();
    for (const line of lines) {
      const said = line.replace(/^data: /, "");
      if (said === "[DONE]") return;
      yield JSON.parse(said);
    }
  }
}

/** Run `act`, which asks the model, with the stop button in reach. */
async function busy(t, act) {
  if (state.running) return;
  state.running = new AbortController();
  trouble("");
  closeTokens();
  $("send").hidden = true;
  $("stop").hidden = false;
  tell("The model answers.");
  try {
    await act();
  } finally {
    const hadFocus = document.activeElement === $("stop");
    state.running = null;
    $("send").hidden = false;
    $("stop").hidden = true;
    if (hadFocus) $("text").focus();
  }
  draw(t);
  const answers = state.turns[t]?.answers || [];
  const error = answers.map((one) => version(one)?.error).find(Boolean);
  if (error) trouble(error);
  else tell(answers.map((one) => `${answers.length > 1 ? side(state.turns[t], one) : "Answer"}: ${textOf(version(one))}`).join(" "));
}

function send(words) {
  if (state.running || !words.trim() || !state.models.length) return;
  state.turns.push(newTurn(words));
  const t = state.turns.length - 1;
  drawAll();
  toTheEnd(true);
  return busy(t, () => Promise.all(state.turns[t].answers.map((answer) => grow(t, answer))));
}

function again(t, answer) {
  state.turns.length = t + 1; // what came after belongs to another answer
  drawAll();
  return busy(t, () => grow(t, answer));
}

function resend(t, words) {
  state.turns.length = t;
  return send(words);
}

/** Go on from another token in the place of token `i`. */
function branch(t, answer, i, entry) {
  const before = version(answer).tokens.slice(0, i);
  state.turns.length = t + 1;
  if (END_MARKS.includes(entry.token)) {
    answer.versions.push({ tokens: before, reason: "stop", notes: [], error: null, first: null, last: null, asked: 0 });
    answer.shown = answer.versions.length - 1;
    closeTokens();
    return drawAll();
  }
  const token = { text: textAfter(before, entry.bytes), id: entry.id, bytes: entry.bytes, logprob: entry.logprob,
    top: version(answer).tokens[i].top, chosen: true };
  drawAll();
  return busy(t, () => grow(t, answer, [...before, token]));
}

/** What a token's bytes add to a text, whose last tokens may be the beginning of a character. */
function textAfter(before, bytes) {
  const held = [];
  for (let i = before.length - 1; i >= 0 && before[i].text === ""; i--) held.unshift(...before[i].bytes);
  const text = new TextDecoder().decode(new Uint8Array([...held, ...bytes]));
  return text.includes("\ufffd") ? "" : text;
}

// --- drawing

function side(turn, answer) { return turn.answers.indexOf(answer) === 0 ? "Left" : "Right"; }

function drawAll() {
  $("welcome").hidden = state.turns.length > 0;
  document.body.classList.toggle("comparing", state.compare);
  $("log").replaceChildren(...state.turns.map((_, t) => make("li", { class: "turn", id: `turn-${t}` })));
  state.turns.forEach((_, t) => draw(t));
}

function draw(t) {
  const turn = state.turns[t], place = $(`turn-${t}`);
  if (!turn || !place) return;
  const complete = turn.answers.every((one) => version(one)?.reason);
  place.replaceChildren(drawMine(t, turn), make("div", { class: "pair" }, ...turn.answers.map((one) => drawAnswer(t, turn, one))));
  if (state.compare && complete && turn.answers.every((one) => !version(one).error)) place.append(drawVote(t, turn));
  if (t === state.turns.length - 1) toTheEnd();
}

function drawMine(t, turn) {
  const mine = make("div", { class: "mine" }, make("h3", { class: "unseen", text: "You" }),
    make("div", { class: "said", text: turn.words }));
  mine.append(make("div", { class: "tools" }, button("Edit", () => edit(t, turn, mine), { "aria-label": "Edit this message" })));
  return mine;
}

function edit(t, turn, mine) {
  if (state.running) return;
  const text = make("textarea", { rows: 3, "aria-label": "Your message, changed" });
  text.value = turn.words;
  const form = make("form", { on: { submit: (event) => { event.preventDefault(); if (text.value.trim()) resend(t, text.value); } } },
    text, make("div", { class: "tools" }, make("button", { class: "main", text: "Send again" }), button("Leave it", () => draw(t))));
  text.addEventListener("keydown", (event) => {
    if (event.key === "Escape") draw(t);
    if (sends(event)) { event.preventDefault(); form.requestSubmit(); }
  });
  mine.replaceChildren(form);
  text.focus();
}

function drawAnswer(t, turn, answer) {
  const made = version(answer), open = !state.compare || turn.vote;
  const box = make("article", { class: "answer", "aria-label": state.compare ? `${side(turn, answer)} answer` : "Answer" });
  if (state.compare) {
    const name = turn.vote ? answer.model : `${side(turn, answer)} · the model's name comes after your vote`;
    box.append(make("h3", { class: "who", text: name }));
    if (turn.vote && turn.vote === (turn.answers.indexOf(answer) === 0 ? "left" : "right")) box.classList.add("preferred");
  } else box.append(make("h3", { class: "unseen", text: answer.model }));
  const words = make("div", { class: "words", id: `words-${t}-${answer.lane}` });
  box.append(words);
  if (!made) return box;
  made.tokens.forEach((_, i) => words.append(drawToken(t, answer, made, i)));
  words.classList.toggle("growing", !made.reason);
  words.classList.toggle("shaded", Boolean(answer.shaded));
  words.addEventListener("keydown", (event) => moveAmong(event, t, answer));
  if (!made.reason) return box;
  if (!textOf(made)) { words.classList.add("empty"); words.textContent = made.error ? "No answer." : "The model said nothing."; }
  for (const note of made.notes) box.append(make("p", { class: "note", text: capital(note) }));
  if (open) box.append(make("p", { class: "meta", text: metaOf(made) }));
  const tools = make("div", { class: "tools" });
  if (answer.versions.length > 1) {
    const show = (step) => () => { answer.shown += step; state.turns.length = t + 1; drawAll(); };
    tools.append(button("‹", show(-1), { "aria-label": "Earlier version", disabled: answer.shown === 0 }),
      make("span", { class: "count", text: `${answer.shown + 1} of ${answer.versions.length}` }),
      button("›", show(1), { "aria-label": "Later version", disabled: answer.shown === answer.versions.length - 1 }));
  }
  if (!state.running && !(state.compare && turn.vote)) tools.append(button("Again", () => again(t, answer), { "aria-label": "Answer again" }));
  tools.append(button("Copy", (event) => copy(textOf(made), event.target)));
  if (made.tokens.length) {
    tools.append(button("Look inside", () => lookInside(t, answer), { "aria-pressed": Boolean(answer.shaded), id: `inside-${t}-${answer.lane}`,
      title: "Shade the tokens that the model was unsure of, and reach them with the arrow keys" }));
  }
  box.append(tools);
  return box;
}

const capital = (words) => words.charAt(0).toUpperCase() + words.slice(1) + ".";

function metaOf(made) {
  const n = made.tokens.length, parts = [`${n} token${n === 1 ? "" : "s"}`];
  if (made.first && made.last > made.first && n > made.begun + 2) {
    parts.push(`${((n - made.begun - 1) / (made.last - made.first) * 1000).toFixed(1)} tokens/s`);
    parts.push(`the first after ${((made.first - made.asked) / 1000).toFixed(2)} s`);
  }
  const ends = { stop: "ended by itself", length: "cut off at the longest answer", stopped: "you stopped it", broken: "broke off" };
  return [...parts, ends[made.reason]].join(" · ");
}

function drawToken(t, answer, made, i) {
  const token = made.tokens[i], span = make("span", { "data-i": i, text: token.text });
  if (token.chosen) span.classList.add("chosen");
  span.style.setProperty("--doubt", (0.34 * (1 - Math.exp(token.logprob))).toFixed(3));
  if (answer.shaded) {
    span.setAttribute("role", "button");
    if (!token.text.trim()) span.setAttribute("aria-label", visible({ ...token, token: token.text }));
    span.setAttribute("tabindex", i === 0 ? 0 : -1);
  }
  span.addEventListener("click", () => openTokens(t, answer, i, span));
  return span;
}

function addToken(t, answer, made, i) {
  if (version(answer) !== made) return;
  const words = $(`words-${t}-${answer.lane}`);
  if (!words) return;
  words.append(drawToken(t, answer, made, i));
  toTheEnd();
}

function toTheEnd(always = false) {
  const talk = $("talk");
  if (always || talk.scrollHeight - talk.scrollTop - talk.clientHeight < 160) talk.scrollTop = talk.scrollHeight;
}

async function copy(text, where) {
  try { await navigator.clipboard.writeText(text); where.textContent = "Copied"; }
  catch { where.textContent = "Not allowed"; }
  setTimeout(() => { where.textContent = "Copy"; }, 1500);
}

// --- tokens and what else they could have been

function lookInside(t, answer) {
  answer.shaded = !answer.shaded;
  draw(t);
  if (answer.shaded) {
    $(`words-${t}-${answer.lane}`).querySelector("span")?.focus();
    tell("Arrow keys move from token to token, Enter shows what else the model could have said, Escape leaves.");
  } else $(`inside-${t}-${answer.lane}`).focus();
}

function moveAmong(event, t, answer) {
  const span = event.target.closest("span[data-i]");
  if (!span) return;
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (step) {
    const spans = [...span.parentElement.children], next = spans[spans.indexOf(span) + step];
    if (next) { span.tabIndex = -1; next.tabIndex = 0; next.focus(); }
    event.preventDefault();
  } else if (event.key === "Enter" || event.key === " ") {
    openTokens(t, answer, Number(span.dataset.i), span);
    event.preventDefault();
  } else if (event.key === "Escape") lookInside(t, answer);
}

/** A token so that its blanks can be seen; bytes that are no character as numbers. */
function visible(entry) {
  if (END_MARKS.includes(entry.token)) return "(the end)";
  const text = new TextDecoder().decode(new Uint8Array(entry.bytes));
  if (text.includes("\ufffd")) return `bytes ${entry.bytes.map((b) => b.toString(16).toUpperCase().padStart(2, "0")).join(" ")}`;
  return text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "(nothing)";
}

const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return share >= 99.95 ? "100 %" : share >= 0.1 ? `${share.toFixed(1)} %` : "< 0.1 %";
};

let opened = null;

function openTokens(t, answer, i, span) {
  closeTokens();
  const made = version(answer), token = made.tokens[i];
  if (!made.reason || !token.top) return;
  const mine = { token: token.text, bytes: token.bytes, id: token.id, logprob: token.logprob };
  const entries = token.top.some((entry) => entry.id === token.id) ? token.top : [...token.top, mine];
  const place = i === 0 ? "at the beginning" : "here";
  $("tokens-title").textContent = `What the model could have said ${place}`;
  const locked = state.running || (state.compare && state.turns[t].vote);
  $("alternatives").replaceChildren(...entries.map((entry) => {
    const current = entry.id === token.id;
    const choice = button("", () => { if (!current && !locked) branch(t, answer, i, entry); else closeTokens(true); },
      { "aria-current": current ? "true" : null, "aria-label": `${visible(entry)}, ${percent(entry.logprob)}${current ? ", chosen" : ""}` });
    choice.append(make("span", { class: "piece", text: visible(entry) }), make("span", { class: "share", text: percent(entry.logprob) }));
    choice.style.setProperty("--share", `${(100 * Math.exp(entry.logprob)).toFixed(1)}%`);
    return make("li", {}, choice);
  }));
  opened = span;
  span.classList.add("open");
  const box = $("tokens"), at = span.getBoundingClientRect();
  box.hidden = false;
  const below = at.bottom + 8 + box.offsetHeight < innerHeight;
  box.style.top = `${Math.max(8, below ? at.bottom + 8 : at.top - 8 - box.offsetHeight)}px`;
  box.style.left = `${Math.max(8, Math.min(at.left, innerWidth - box.offsetWidth - 12))}px`;
  $("alternatives").querySelector("button").focus({ preventScroll: true });
}

function closeTokens(back = false) {
  if (!opened) return;
  $("tokens").hidden = true;
  opened.classList.remove("open");
  if (back && opened.isConnected && opened.hasAttribute("tabindex")) opened.focus();
  opened = null;
}

// --- two models and a vote

function drawVote(t, turn) {
  if (turn.vote) {
    const words = turn.vote === "tie" ? "You found them equally good." : `You preferred ${turn.answers[turn.vote === "left" ? 0 : 1].model}.`;
    return make("div", { class: "vote" }, make("p", { text: `${words} ${turn.kept || ""}` }));
  }
  const choose = (choice) => async () => {
    const [left, right] = turn.answers;
    turn.vote = choice;
    try {
      await ask("vote", { prompt: turn.words, left: left.model, right: right.model, choice,
        left_answer: textOf(version(left)), right_answer: textOf(version(right)) });
      turn.kept = "The vote is in the server's file.";
    } catch (error) {
      turn.kept = `The vote was not kept. ${error.message}`;
    }
    draw(t);
    tell(`Left was ${left.model}, right was ${right.model}. ${turn.kept}`);
    $("text").focus();
  };
  return make("div", { class: "vote", role: "group", "aria-label": "Which answer is better?" }, make("p", { text: "Which is better?" }),
    button("Left", choose("left")), button("Equally good", choose("tie")), button("Right", choose("right")));
}

function compare(on) {
  if (state.running) return;
  state.compare = on;
  $("compare").setAttribute("aria-pressed", on);
  $("versus").hidden = !on;
  if (on && $("other").value === $("model").value) {
    $("other").value = state.models.find((one) => one.id !== $("model").value).id;
  }
  restart();
}

function restart() {
  state.running?.abort();
  state.turns = [];
  trouble("");
  closeTokens();
  drawAll();
  describe();
  $("text").focus();
}

function describe() {
  if (!state.models.length) return;
  const one = state.models.find((model) => model.id === $("model").value);
  const room = Math.round(one.context_length * 0.75 / 100) * 100;
  $("about").textContent = state.compare
    ? `${$("model").value} and ${$("other").value} answer side by side, in an order that is drawn each time. You vote before you see who is who.`
    : one.is_chat
      ? `${one.id} keeps some ${room || 50} words of a conversation in mind. It is small: wrong as fluently as it is right.`
      : `${one.id} is not a chat model: it has never seen a conversation and only continues texts. Expect the rhythm of English, no answers.`;
}

// --- the beginning

const sends = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

function fitHeight() {
  const text = $("text");
  text.style.height = "auto";
  text.style.height = `${Math.min(text.scrollHeight, 176)}px`;
}

async function begin() {
  buildSettings();
  $("ideas").append(...IDEAS.map((words) => make("li", {}, button(words, () => send(words)))));
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (state.running || !$("text").value.trim()) return;
    const words = $("text").value;
    $("text").value = "";
    fitHeight();
    send(words);
  });
  $("text").addEventListener("input", fitHeight);
  $("text").addEventListener("keydown", (event) => {
    if (sends(event)) { event.preventDefault(); $("composer").requestSubmit(); }
  });
  $("stop").addEventListener("click", () => state.running?.abort());
  $("new").addEventListener("click", restart);
  $("compare").addEventListener("click", () => compare(!state.compare));
  $("open-settings").addEventListener("click", () => toggleSettings($("settings").hidden));
  $("close-settings").addEventListener("click", () => toggleSettings(false));
  for (const id of ["model", "other"]) {
    $(id).addEventListener("change", () => { if (state.compare) compare(true); describe(); });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (opened) closeTokens(true);
    else if (state.running) state.running.abort();
    else if (!$("settings").hidden && $("settings").contains(document.activeElement)) toggleSettings(false);
  });
  document.addEventListener("pointerdown", (event) => {
    if (opened && !$("tokens").contains(event.target) && event.target !== opened) closeTokens();
  });
  $("talk").addEventListener("scroll", () => { if (opened) closeTokens(); });
  try {
    state.models = (await (await ask("v1/models")).json()).data;
  } catch (error) {
    $("about").textContent = "";
    return trouble(error.message);
  }
  for (const id of ["model", "other"]) {
    $(id).replaceChildren(...state.models.map((one) => make("option", { value: one.id, text: one.is_chat ? one.id : `${one.id} (no chat model)` })));
  }
  if (state.models.length < 2) {
    $("compare").disabled = true;
    $("compare").title = "Start the server with two checkpoints to compare them";
  } else $("other").selectedIndex = 1;
  describe();
  $("text").focus();
}

begin();
