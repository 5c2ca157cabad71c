"use strict";

const { about, neurons, erasers, words } = JSON.parse(document.getElementById("data").textContent);
const place = new Map(neurons.map((neuron, at) => [neuron.i, at]));
const NEAREST = 4; // tokens further away are not searched

/* The address holds the page's state, so that it can be shared: query, order, page of the list, neuron. */
function state() {
  const given = new URLSearchParams(location.hash.slice(1));
  const number = given.get("n");
  return {
    q: given.get("q") ?? "",
    sort: given.get("sort") ?? "",
    p: Math.max(1, parseInt(given.get("p"), 10) || 1),
    n: number !== null && /^\d+$/.test(number) ? Number(number) : null,
  };
}

function address(changes) {
  const next = { ...state(), ...changes };
  const parts = new URLSearchParams();
  if (next.q) parts.set("q", next.q);
  if (next.sort) parts.set("sort", next.sort);
  if (next.p > 1) parts.set("p", next.p);
  if (next.n !== null) parts.set("n", next.n);
  return `#${parts}`;
}

/* Searched texts, with the weight of a hit. */
const fold = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
const listed = (tokens) => fold((tokens ?? []).map((token) => words[token]).join("\n"));
const texts = neurons.map((neuron) => [
  [16, fold(neuron.explanation?.[0] ?? "")],
  [16, fold((neuron.tags ?? []).map(([concept]) => concept).join("\n"))],
  [4, fold((neuron.patterns ?? []).map(([text]) => text).join("\n"))],
  [4, listed(neuron.tokens)],
  [1, listed(neuron.nearest?.slice(0, NEAREST).map(([token]) => token))],
]);

/* Scores a hit: 0 if `word` is not in `text`; more at the start of a word and for a whole word, a bit more early on. */
function hit(text, word) {
  const letter = /[\p{L}\p{N}]/u;
  let best = 0;
  for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + 1)) {
    const starts = at === 0 || !letter.test(text[at - 1]);
    const ends = at + word.length === text.length || !letter.test(text[at + word.length]);
    best = Math.max(best, (starts && ends ? 3 : starts ? 2 : 1) + (1 - at / text.length) / 4);
  }
  return best;
}

/* Positions of the neurons that match every word, with their scores. */
function matches(q) {
  const asked = fold(q).split(/\s+/).filter(Boolean);
  const found = [];
  neurons.forEach((neuron, at) => {
    let total = (neuron.tags ? 0.02 : 0) + (neuron.explanation ? 0.01 : 0);
    for (const word of asked) {
      let best = String(neuron.i) === word ? 100 : 0;
      for (const [weight, text] of texts[at]) best = Math.max(best, weight * hit(text, word));
      if (!best) return;
      total += best;
    }
    found.push([at, total]);
  });
  return found;
}

const scoreNames = [...new Set(neurons.flatMap((neuron) => (neuron.scores ?? []).map(([name]) => name)))].sort();
const scoreOf = (neuron, name) => neuron.scores?.find(([own]) => own === name)?.[1] ?? -1e9;
const ORDERS = new Map([
  ["", ["relevance", null]],
  ["number", ["number", (neuron) => -neuron.i]],
  ["often", ["fires most often", (neuron) => neuron.density ?? -1]],
  ["seldom", ["fires least often", (neuron) => -(neuron.density ?? 2)]],
  ["peak", ["largest code", (neuron) => neuron.peak ?? -1]],
  ...scoreNames.map((name) => [`score-${name}`, [`${name} score`, (neuron) => scoreOf(neuron, name)]]),
]);

/* Positions of the neurons to list, in order. */
let memory = { key: null, found: [] };
function results({ q, sort }) {
  const key = `${sort}\n${q}`;
  if (memory.key !== key) {
    const by = ORDERS.get(sort)?.[1];
    const found = matches(q);
    const value = by ? ([at]) => by(neurons[at]) : ([, total]) => total;
    const values = new Map(found.map((one) => [one[0], value(one)]));
    const often = (at) => neurons[at].density ?? 0;
    const order = (a, b) => values.get(b) - values.get(a) || often(b) - often(a) || a - b;
    found.sort(([a], [b]) => order(a, b));
    memory = { key, found: found.map(([at]) => at) };
  }
  return memory.found;
}
