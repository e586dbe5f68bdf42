// A conversation with one model, or the same messages to two of them with the same seed. Everything stays on this page.
"use strict";

const at = (id) => document.getElementById(id);
const sides = [...document.querySelectorAll(".side")].map((element) => ({
  element,
  model: element.querySelector(".model"),
  talk: element.querySelector(".talk"),
  speed: element.querySelector(".speed"),
  messages: [],
}));
let under_way = null; // what stops the answers

const shown = () => sides.filter((side) => !side.element.hidden);

function tell(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

function headers() {
  const key = at("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function problem_of(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `status ${response.status}`;
  }
}

async function list_models() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) {
    if (response.status === 401) at("settings").open = true;
    throw new Error(await problem_of(response));
  }
  const names = (await response.json()).data.map((model) => model.id);
  sides.forEach((side, i) => {
    const chosen = side.model.value || names[Math.min(i, names.length - 1)];
    side.model.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
  });
  tell("");
}

function paragraph(side, kind, text) {
  const p = document.createElement("p");
  p.className = kind;
  p.textContent = text;
  side.talk.append(p);
  side.talk.scrollTop = side.talk.scrollHeight;
  return p;
}

// The data of server-sent events, as they come.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: ?/, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function request_of(side) {
  const system = at("system").value.trim();
  return {
    model: side.model.value,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...side.messages],
    temperature: Number(at("temperature").value),
    max_tokens: Number(at("max-tokens").value),
    seed: Number(at("seed").value),
    stream: true,
    stream_options: { include_usage: true },
  };
}

// Only where one reads at the end does the conversation follow what is written.
function append(side, p, text) {
  const follows = side.talk.scrollHeight - side.talk.scrollTop - side.talk.clientHeight < 40;
  p.textContent += text;
  if (follows) side.talk.scrollTop = side.talk.scrollHeight;
}

async function answer(side, text, signal) {
  side.messages.push({ role: "user", content: text });
  paragraph(side, "user", text);
  const p = paragraph(side, "assistant", "");
  side.talk.setAttribute("aria-busy", "true"); // read out when it is whole
  side.speed.textContent = "";
  let first = 0, pieces = 0, why = "";
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(request_of(side)), signal,
    });
    if (!response.ok) throw new Error(await problem_of(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      const now = performance.now();
      if (choice?.delta?.content) {
        pieces += 1;
        first ||= now;
        append(side, p, choice.delta.content);
      }
      why = choice?.finish_reason ?? why;
      const tokens = event.usage?.completion_tokens ?? pieces;
      if (tokens > 1 && now > first) side.speed.textContent = `${((tokens - 1) / (now - first) * 1000).toFixed(0)} tokens/s`;
    }
    if (why === "length") paragraph(side, "note", "ended at the most tokens");
  } catch (error) {
    if (error.name === "AbortError") paragraph(side, "note", "stopped");
    else paragraph(side, "wrong", error.message);
  }
  side.talk.removeAttribute("aria-busy");
  if (p.textContent) side.messages.push({ role: "assistant", content: p.textContent });
  else {
    p.remove();
    side.messages.pop(); // what was not answered is not asked again
  }
}

function set_busy(busy) {
  at("send").disabled = busy;
  at("stop").disabled = !busy;
  at("clear").disabled = busy;
}

async function send() {
  const text = at("text").value.trim();
  if (!text || under_way) return;
  under_way = new AbortController();
  at("text").value = "";
  set_busy(true);
  tell("answering …");
  await Promise.all(shown().map((side) => answer(side, text, under_way.signal)));
  under_way = null;
  set_busy(false);
  tell("");
  at("text").focus();
}

function clear() {
  for (const side of sides) {
    side.messages = [];
    side.talk.replaceChildren();
    side.speed.textContent = "";
  }
  at("text").focus();
}

// A second model begins where the first one is: with an empty conversation, so that both have heard the same.
function set_sides() {
  const two = at("two").checked;
  sides[1].element.hidden = !two;
  at("sides").dataset.sides = two ? "2" : "1";
  if (two && sides[0].messages.length) clear();
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") under_way?.abort();
});
at("stop").addEventListener("click", () => under_way?.abort());
at("clear").addEventListener("click", clear);
at("two").addEventListener("change", set_sides);
const show_models = () => list_models().catch((error) => tell(error.message, true));
at("key").addEventListener("change", show_models);
for (const side of sides) side.model.addEventListener("focus", show_models);
show_models();
