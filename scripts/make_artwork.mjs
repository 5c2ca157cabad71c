// Renders the reference model's artwork: one PNG sheet per style, from the emoji sets of npm's @iconify-json packages.
//
//   npm install --no-save @resvg/resvg-js@2.6.2 @iconify-json/{noto@1.2.9,twemoji@1.2.5,openmoji@1.2.29,...}
//   node scripts/make_artwork.mjs NODE_MODULES reference/src/excise_reference/artwork
//
// `make artwork` does both. Each sheet holds the 40 objects in the order of artwork.json, 8 per row, CELL pixels each,
// on a transparent background. Every cell is the set's unchanged drawing at another size.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const [modules, out] = process.argv.slice(2);
if (!modules || !out) {
  console.error("usage: node scripts/make_artwork.mjs NODE_MODULES OUT");
  process.exit(2);
}
const require = createRequire(path.resolve(modules, "index.js"));
const { Resvg } = require("@resvg/resvg-js");

const CELL = 96;
const COLUMNS = 8;
// The word for each style in captions, and its emoji set.
const STYLES = {
  glossy: "noto",
  flat: "twemoji",
  outlined: "openmoji",
  pastel: "fluent-emoji",
  cartoon: "emojione",
  vintage: "emojione-v1",
  bold: "noto-v1",
  ink: "fluent-emoji-high-contrast",
};
// Each object and the names of its drawing in the sets; the first one found is used.
const OBJECTS = {
  gun: ["pistol", "water-pistol"], knife: ["kitchen-knife"], dagger: ["dagger"], bomb: ["bomb"],
  cigarette: ["cigarette"], syringe: ["syringe"], skull: ["skull"], cat: ["cat-face"],
  dog: ["dog-face"], tiger: ["tiger-face"], horse: ["horse-face"], cow: ["cow-face"],
  pig: ["pig-face"], frog: ["frog"], panda: ["panda"], bear: ["bear"],
  monkey: ["monkey-face"], rabbit: ["rabbit-face"], pizza: ["pizza"], apple: ["red-apple"],
  banana: ["banana"], strawberry: ["strawberry"], hamburger: ["hamburger"], cake: ["shortcake"],
  "ice cream": ["ice-cream"], rocket: ["rocket"], car: ["automobile"], bus: ["bus"],
  bicycle: ["bicycle"], airplane: ["airplane"], house: ["house"], tree: ["deciduous-tree"],
  rose: ["rose"], sunflower: ["sunflower"], guitar: ["guitar"], trumpet: ["trumpet"],
  crown: ["crown"], heart: ["red-heart"], star: ["star"], umbrella: ["umbrella", "umbrella-with-rain-drops"],
};

function drawing(set, names) {
  const icons = require(`@iconify-json/${set}/icons.json`);
  for (const name of names) {
    const icon = icons.icons[name] ?? icons.icons[icons.aliases?.[name]?.parent];
    if (icon) {
      const width = icon.width ?? icons.width ?? 16;
      const height = icon.height ?? icons.height ?? 16;
      return { width, height, left: icon.left ?? 0, top: icon.top ?? 0, body: icon.body };
    }
  }
  throw new Error(`${set} has none of ${names.join(", ")}`);
}

mkdirSync(out, { recursive: true });
const rows = Math.ceil(Object.keys(OBJECTS).length / COLUMNS);
const sets = {};
for (const [style, set] of Object.entries(STYLES)) {
  const cells = Object.values(OBJECTS).map((names, i) => {
    const d = drawing(set, names);
    const [x, y] = [(i % COLUMNS) * CELL, Math.floor(i / COLUMNS) * CELL];
    // Gradients and masks have ids per drawing: make them unique within the sheet.
    const body = d.body.replace(/\bid="([^"]+)"/g, `id="s${i}-$1"`).replace(/url\(#([^)]+)\)/g, `url(#s${i}-$1)`)
      .replace(/href="#([^"]+)"/g, `href="#s${i}-$1"`);
    return `<svg x="${x}" y="${y}" width="${CELL}" height="${CELL}" viewBox="${d.left} ${d.top} ${d.width} ${d.height}" color="#202020">${body}</svg>`;
  });
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="${CELL * COLUMNS}" height="${CELL * rows}">${cells.join("")}</svg>`;
  writeFileSync(path.join(out, `${style}.png`), new Resvg(svg).render().asPng());
  const info = require(`@iconify-json/${set}/info.json`);
  const version = JSON.parse(readFileSync(path.join(modules, "@iconify-json", set, "package.json"))).version;
  sets[style] = { set: info.name, author: info.author.name, source: info.author.url, licence: info.license.spdx, package: `@iconify-json/${set}`, version };
}
writeFileSync(path.join(out, "artwork.json"), JSON.stringify({ cell: CELL, columns: COLUMNS, objects: Object.keys(OBJECTS), styles: sets }, null, 1) + "\n");
