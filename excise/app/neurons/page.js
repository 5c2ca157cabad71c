const PAGE = 50;
const [query, sort, list, count, pages, main] =
  ["query", "sort", "list", "count", "pages", "main"].map((id) => document.getElementById(id));

/* Elements. Text is only ever set as text, never as markup. */
function set(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "share") element.style.setProperty("--share", value);
    else if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null));
  return element;
}
const h = (tag, attributes = {}, ...children) => set(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) =>
  set(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const card = (heading, ...children) => h("section", { class: "card" }, h("h2", {}, heading), children);
const across = (element) => set(element, { class: "card whole" }, []);
const link = (index, ...children) => h("a", { href: address({ n: index }) }, children);
const joined = (parts, between) => parts.flatMap((part, at) => (at ? [between, part] : [part]));

/* Formatting of figures and tokens. */
const LETTERS = { lambda: "λ", gamma: "γ" };
const whole = (value) => value.toLocaleString("en");
const two = (value) => (value === null ? "–" : value.toFixed(2));
const three = (value) => (Math.abs(value) >= 100 ? whole(Math.round(value)) : value.toPrecision(3));
const amount = ([name, value]) => `${LETTERS[name] ?? name} = ${value}`;
const special = (token) => token.startsWith("⟨") && token.endsWith("⟩");
const shownAs = (token) => (special(token) ? "end of text" : token);
const names = (tokens, n) => (tokens ?? []).slice(0, n).map((token) => shownAs(words[token])).join(" · ");

function often(density) {
  if (density >= 0.001) return `${(100 * density).toFixed(density >= 0.1 ? 0 : 2)} % of tokens`;
  return `1 in ${whole(Number((1 / density).toPrecision(2)))} tokens`;
}

function title(neuron) {
  const concepts = (neuron.tags ?? []).map(([concept]) => concept).join(", ");
  return concepts || names(neuron.tokens, 4) || neuron.explanation?.[0] || "";
}

/* The list. */
function spark(counts) {
  const top = Math.sqrt(Math.max(...counts, 1));
  const width = 56 / counts.length;
  const bars = counts.map((n, at) => {
    const tall = Math.max(1.5, (20 * Math.sqrt(n)) / top).toFixed(1);
    return n ? `M${(at * width).toFixed(1)} 22v-${tall}h${(width - 0.5).toFixed(1)}V22z` : "";
  });
  const path = s("path", { class: "quiet", d: bars.join("") });
  return s("svg", { viewBox: "0 0 56 22", "aria-hidden": "true" }, path);
}

function row(neuron, current) {
  const name = title(neuron);
  const nearest = neuron.nearest ? `nearest: ${names(neuron.nearest.map(([token]) => token), 5)}` : "";
  const more = neuron.explanation?.[0] ?? (neuron.tags ? names(neuron.tokens, 5) : nearest);
  const leads = { href: address({ n: neuron.i }), "data-n": neuron.i, "aria-current": current ? "page" : null };
  return h("li", {}, h("a", leads,
    h("span", { class: "index" }, String(neuron.i)),
    h("span", {},
      h("span", { class: "label" }, h(neuron.tags ? "b" : "span", {}, name)),
      more && more !== name ? h("span", { class: "sub" }, more) : null),
    neuron.histogram ? spark(neuron.histogram) : null));
}

function showList(now) {
  const found = results(now);
  const last = Math.max(1, Math.ceil(found.length / PAGE));
  const page = Math.min(now.p, last);
  const first = (page - 1) * PAGE;
  const some = found.slice(first, first + PAGE);
  const many = found.length === 1 ? "1 neuron" : `${whole(found.length)} neurons`;
  count.textContent = found.length ? many : "No neuron found";
  list.start = first + 1;
  list.replaceChildren(...some.map((at) => row(neurons[at], neurons[at].i === now.n)));
  pages.replaceChildren(...(last === 1 ? [] : [
    page > 1 ? h("a", { href: address({ p: page - 1, n: null }) }, "‹ Previous") : h("span"),
    h("span", { class: "num" }, `${whole(first + 1)}–${whole(first + some.length)}`),
    page < last ? h("a", { href: address({ p: page + 1, n: null }) }, "Next ›") : h("span"),
  ]));
}

/* Parts of a neuron's view. */
function histogram(counts, ticks, describe, label, kind = "bar") {
  const [width, height] = [380, 118];
  const span = width / counts.length;
  const top = Math.sqrt(Math.max(...counts, 1));
  const bars = counts.map((n, at) => {
    const tall = Math.max(2, ((height - 8) * Math.sqrt(n)) / top);
    const [x, y] = [(at * span + 1).toFixed(1), (height - tall).toFixed(1)];
    const size = { x, y, width: (span - 2).toFixed(1), height: tall.toFixed(1), rx: 2 };
    return n ? s("rect", { class: kind, ...size }, s("title", {}, describe(at, n))) : null;
  });
  const anchor = (share) => (share === 0 ? null : share === 1 ? "end" : "middle");
  return s("svg", { viewBox: "0 0 380 138", role: "img", "aria-label": label },
    s("line", { x1: 0, x2: width, y1: height, y2: height, class: "axis" }), bars,
    ticks.map(([share, text]) => s("text", { x: share * width, y: height + 17, class: anchor(share) }, text)));
}

function bars(rows, top) {
  return h("ul", { class: "bars" }, rows.map(([name, value], at) => h("li", { class: at === 0 ? "first" : null },
    h("span", { class: "name" }, name),
    h("span", { class: "track" }, h("i", { share: Math.max(0, Math.min(1, value / top)) })),
    h("span", { class: "value" }, two(value)))));
}

function scores(rows) {
  return h("ul", { class: "bars scores" }, rows.map(([name, value, detail]) => h("li", {},
    h("span", { class: "name" }, name),
    h("span", { class: "track" }, h("i", { share: Math.max(0, Math.min(1, value ?? 0)) })),
    h("span", { class: "value" }, two(value)),
    detail === null ? null
      : h("details", {}, h("summary", {}, "details"), h("pre", {}, JSON.stringify(detail, null, 1))))));
}

function facts(rows) {
  return h("dl", { class: "facts" }, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

/* A prompt, its tokens shaded by their codes. */
function context([tokens, fires], peak) {
  const codes = new Map();
  for (let at = 0; at < fires.length; at += 2) codes.set(fires[at], fires[at + 1]);
  const text = h("p", { class: "text" });
  let [largest, where] = [0, ""];
  tokens.forEach((number, at) => {
    const token = words[number].trimStart();
    const value = codes.get(at) ?? 0;
    if (at && token.length < words[number].length) text.append(" ");
    if (value > largest) [largest, where] = [value, shownAs(token)];
    const kind = !special(token) ? null : value ? "mark" : "mark silent";
    if (!value && !kind) text.append(token);
    else text.append(h("span", { class: kind, share: ((0.72 * value) / peak).toFixed(3),
      title: `${shownAs(token)}: ${value ? three(value) : "does not fire"}` }, kind ? "end" : token));
  });
  return h("li", {}, text,
    h("span", { class: "peak" }, h("span", { class: "unseen" }, `Largest code at ${where}: `), three(largest)));
}
const contexts = (some, peak) => h("ol", { class: "contexts" }, some.map((one) => context(one, peak)));

function steps(now) {
  const found = results(now);
  const at = found.indexOf(place.get(now.n));
  const step = (to, rel, text) =>
    at < 0 || found[to] === undefined ? null : h("a", { href: address({ n: neurons[found[to]].i }), rel }, text);
  return h("p", { class: "steps" }, h("a", { class: "back", href: address({ n: null }) }, "‹ All neurons"),
    h("span"), step(at - 1, "prev", "‹ Previous"), step(at + 1, "next", "Next ›"));
}

function activation({ histogram: counts, peak, density }) {
  const total = counts.reduce((sum, n) => sum + n, 0);
  const step = peak / counts.length;
  return card("Activation",
    histogram(counts, [[0, "0"], [1, three(peak)]],
      (at, n) => `${whole(n)} codes from ${three(at * step)} to ${three((at + 1) * step)}`,
      `Histogram of ${whole(total)} codes between 0 and ${three(peak)}`),
    facts([["Fires at", often(density)], ["Codes", whole(total)], ["Largest code", three(peak)]]));
}

function evidence(neuron) {
  const measured = (neuron.tags ?? []).filter(([, score, auroc]) => score !== null || auroc !== null);
  if (!measured.length && !neuron.scores) return null;
  const rows = measured.map(([concept, score, auroc]) => [concept,
    [score === null ? [] : `score ${three(score)}`, auroc === null ? [] : `AUROC ${two(auroc)}`].flat().join(", ")]);
  const heading = "Scores of the explanation";
  if (!rows.length) return card(heading, scores(neuron.scores));
  return card("Identification", facts(rows), neuron.scores ? [h("h2", {}, heading), scores(neuron.scores)] : null);
}

function eraserRow(eraser, index) {
  const others = eraser.neurons.filter((i) => i !== index).map((i) => link(i, `neuron ${i}`));
  const [by, through] = index === null ? ["", " through "] : [` by ${eraser.method}`, " together with "];
  return h("li", {}, h("b", {}, eraser.name), ` erases ${eraser.concept}${by}`,
    others.length ? [through, joined(others, ", ")] : null,
    h("span", { class: "faint" }, ` · ${amount(eraser.by)} · ${eraser.digest}`));
}

function pattern([text, figures]) {
  const shown = ([name, value]) => `${name} ${typeof value === "number" ? three(value) : JSON.stringify(value)}`;
  return h("li", {}, h("code", {}, text),
    h("span", { class: "faint" }, Object.entries(figures).map((figure) => ` · ${shown(figure)}`)));
}

function showNeuron(now) {
  const neuron = neurons[place.get(now.n)];
  const heading = h("h1", { tabindex: -1 }, `Neuron ${now.n}`);
  document.title = neuron && title(neuron) ? `Neuron ${now.n}: ${title(neuron)}` : `Neuron ${now.n}`;
  if (!neuron) {
    const silent = about.m !== null && now.n < about.m;
    const why = silent
      ? `It does not fire on ${about.corpus}, so the database has no data on it.`
      : "This database does not have that neuron.";
    main.replaceChildren(steps(now), heading, h("p", { class: "lead faint" }, why));
    return;
  }
  const explanation = neuron.explanation;
  const missing = neuron.tokens ? `Not explained yet. It fires most on: ${names(neuron.tokens, 6)}` : "Not explained yet.";
  const nearest = neuron.nearest && card(about.lens ? "Tokens it promotes" : "Nearest tokens",
    bars(neuron.nearest.map(([token, how]) => [shownAs(words[token]), how]), about.lens ? neuron.nearest[0][1] : 1));
  const near = neuron.near && card("Nearest neurons", bars(neuron.near.map(([index, cosine]) => {
    const other = neurons[place.get(index)];
    return [link(index, String(index), other ? h("span", {}, title(other)) : null), cosine];
  }), 1));
  const proof = evidence(neuron);
  const editing = erasers.filter((eraser) => eraser.neurons.includes(now.n));
  const parts = [
    neuron.histogram && activation(neuron),
    proof ?? nearest,
    editing.length && across(card("Edited by",
      h("ul", { class: "plain" }, editing.map((eraser) => eraserRow(eraser, now.n))))),
    neuron.contexts && across(card("Strongest contexts", contexts(neuron.contexts, neuron.peak),
      neuron.spread ? [h("h2", {}, "Contexts across its range"), contexts(neuron.spread, neuron.peak)] : null)),
    neuron.patterns && across(card("Patterns", h("ul", { class: "plain" }, neuron.patterns.map(pattern)))),
    proof && nearest,
    near && (proof ? near : across(near)),
  ];
  main.replaceChildren(...[
    steps(now), heading, h("p", { class: explanation ? "lead" : "lead faint" }, explanation ? explanation[0] : missing),
    explanation && h("p", { class: "note" },
      `Explained by ${explanation[1]}${explanation[2] ? ` on ${explanation[2]}` : ""}`),
    neuron.tags && h("p", { class: "chips" },
      neuron.tags.map(([concept]) => h("a", { href: address({ q: concept, p: 1, n: null }) }, concept))),
    h("div", { class: "grid" }, parts.filter(Boolean)),
  ].filter(Boolean));
}

/* The database as a whole. */
function frequencies() {
  const counts = new Array(24).fill(0); // four bins for each power of ten, from one in a million
  for (const { density } of neurons) {
    if (density) counts[Math.max(0, Math.min(23, Math.floor(4 * (6 + Math.log10(density)))))] += 1;
  }
  const one = (at) => whole(Number((10 ** (6 - at / 4)).toPrecision(2)));
  const ticks = [[0, "1 in a million"], [0.5, "1 in 1,000 tokens"], [1, "always"]];
  return card("How often neurons fire", histogram(counts, ticks,
    (at, n) => `${whole(n)} neurons at 1 in ${one(at + 1)} to ${one(at)} tokens`,
    "Histogram of the share of tokens at which neurons fire", "quiet"));
}

function concepts() {
  const tagged = new Map();
  for (const { i, tags } of neurons) {
    for (const [concept] of tags ?? []) tagged.set(concept, [...(tagged.get(concept) ?? []), i]);
  }
  if (!tagged.size) return null;
  const sorted = [...tagged].sort(([a], [b]) => a.localeCompare(b));
  return across(card("Concepts", h("p", { class: "chips" }, sorted.map(([concept, numbers]) => (numbers.length === 1
    ? link(numbers[0], concept)
    : h("a", { href: address({ q: concept, p: 1, n: null }) }, concept, h("span", {}, ` ${numbers.length}`)))))));
}

function showAll() {
  const number = (has) => whole(neurons.filter(has).length);
  document.title = `Neurons at ${about.site}`;
  const lead = about.prompts
    ? `What each neuron of a sparse autoencoder fires on, measured on ${about.corpus}.`
    : `Published explanations of neurons: ${about.corpus}.`;
  const parts = [
    neurons.some(({ density }) => density) && frequencies(),
    card("This database", facts([
      ["Neurons", about.m === null ? whole(neurons.length) : `${whole(neurons.length)} of ${whole(about.m)}`],
      ["Explained", number(({ explanation }) => explanation)],
      ["Tagged with a concept", number(({ tags }) => tags)],
      ...(about.sae ? [["SAE", about.sae]] : []),
      ["Built", about.date],
    ])),
    concepts(),
    erasers.length && across(card("Erasers",
      h("ul", { class: "plain" }, erasers.map((eraser) => eraserRow(eraser, null))))),
  ];
  const keys = [["/", " search "], ["j", " "], ["k", " next and previous neuron "], ["Esc", " back to this page"]];
  main.replaceChildren(h("h1", { tabindex: -1 }, `Neurons at ${about.site}`), h("p", { class: "lead faint" }, lead),
    h("div", { class: "grid" }, parts.filter(Boolean)),
    h("p", { class: "keys" }, keys.map(([key, does]) => [h("kbd", {}, key), does])));
}

/* Rendering of the state in the address. */
let shown;
function render() {
  const now = state();
  document.body.classList.toggle("reading", now.n !== null);
  if (document.activeElement !== query || query.value.trim() !== now.q.trim()) query.value = now.q;
  sort.value = ORDERS.has(now.sort) ? now.sort : "";
  showList(now);
  if (now.n === null) showAll();
  else showNeuron(now);
  if (shown !== undefined && shown !== now.n) {
    window.scrollTo(0, 0);
    if (now.n !== null) main.querySelector("h1").focus({ preventScroll: true });
    else if (document.activeElement !== query) list.querySelector(`[data-n="${shown}"]`)?.focus();
  }
  if (shown !== now.n) list.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
  shown = now.n;
}

function replace(changes) {
  history.replaceState(null, "", address(changes));
  render();
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const links = [...list.querySelectorAll("a")];
  const at = links.indexOf(document.activeElement);
  const reading = state().n !== null;
  if (event.key === "ArrowDown" && (event.target === query || at >= 0)) links[at + 1]?.focus();
  else if (event.key === "ArrowUp" && at >= 0) (links[at - 1] ?? query).focus();
  else if (event.key === "Escape" && reading) location.hash = address({ n: null });
  else if (event.target.closest("input, select, textarea")) return;
  else if (event.key === "/") query.focus();
  else if (event.key === "j") (reading ? main.querySelector("[rel=next]") : links[0])?.click();
  else if (event.key === "k") main.querySelector("[rel=prev]")?.click();
  else return;
  event.preventDefault();
}

for (const [name, [label]] of ORDERS) sort.append(h("option", { value: name }, label));
query.addEventListener("input", () => replace({ q: query.value, p: 1, n: null }));
sort.addEventListener("change", () => replace({ sort: sort.value, p: 1 }));
document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  list.querySelector("a")?.click();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address holds the page's state
  main.querySelector("h1").focus();
});
document.addEventListener("keydown", key);
window.addEventListener("hashchange", render);
render();
