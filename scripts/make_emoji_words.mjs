// Writes the names and keywords of emoji on which the reference model's text encoder is distilled, one emoji per line:
// its name, a colon, its keywords. They are emojilib's (MIT), unchanged.
//
//   npm install --no-save emojilib@4.0.3
//   node scripts/make_emoji_words.mjs NODE_MODULES reference/src/excise_reference/emoji_words.txt
//
// `make artwork` does both.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [modules, out] = process.argv.slice(2);
const emoji = JSON.parse(readFileSync(join(modules, "emojilib/dist/emoji-en-US.json"), "utf8"));
const readable = (word) => word.replaceAll("_", " ").trim();
const lines = Object.values(emoji).map(([name, ...keywords]) => {
  const plain = keywords.map(readable).filter((word) => /^[\p{L}\p{N} '&.-]+$/u.test(word));
  return `${readable(name)}: ${[...new Set(plain)].join(", ")}`;
});
writeFileSync(out, [...new Set(lines)].join("\n") + "\n");
console.log(`${lines.length} emoji`);
