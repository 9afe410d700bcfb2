// BERT's uncased WordPiece tokenizer, token for token what the library `tokenizers` makes of a text, with the place
// of each token in it. Runs in the worker.

// A class of characters from ranges of code points. They come with the model, because the tokenizer's own tables are of
// another version of Unicode than the browser's.
function classOf(ranges) {
  const point = value => `\\u{${value.toString(16)}}`;
  return new RegExp(`^[${ranges.map(([first, last]) => `${point(first)}-${point(last)}`).join("")}]$`, "u");
}

class Tokenizer {
  // `vocabulary` lists the tokens by number; `special` are those that a text may hold as they are, such as [MASK].
  constructor({ vocabulary, special, longestWord, classes }) {
    this.classes = Object.entries(classes).map(([name, ranges]) => [name, classOf(ranges)]);
    this.known = new Map();
    this.tokens = vocabulary;
    this.ids = new Map(vocabulary.map((token, id) => [token, id]));
    this.special = new RegExp(special.map(token => token.replace(/[[\]]/g, "\\$&")).join("|"), "g");
    this.longestWord = longestWord;
    this.cls = this.ids.get("[CLS]");
    this.sep = this.ids.get("[SEP]");
    this.unknown = this.ids.get("[UNK]");
  }

  // The class of a character: "vanish", "space", "alone" (Han), "punctuation", or none of them.
  kind(character) {
    if (!this.known.has(character))
      this.known.set(character, this.classes.find(([, pattern]) => pattern.test(character))?.[0]);
    return this.known.get(character);
  }

  // The characters of text[from:to] as BERT reads them, [character, where it began, where it ended]: without accents
  // and control characters, in lower case, Han characters between spaces.
  *characters(text, from, to) {
    for (let at = from, end; at < to; at = end) {
      const character = String.fromCodePoint(text.codePointAt(at)), kind = this.kind(character);
      end = at + character.length;
      if (kind === "space" || kind === "alone") yield [" ", at, end];
      if (kind === "space" || kind === "vanish") continue;
      for (const part of character.normalize("NFD"))
        if (this.kind(part) !== "vanish") for (const lower of part.toLowerCase()) yield [lower, at, end];
      if (kind === "alone") yield [" ", at, end];
    }
  }

  // Words between spaces, each punctuation mark a word of its own. A word is a list of characters as above.
  words(text, from, to) {
    const words = [];
    let word = [];
    const close = () => {
      if (word.length) words.push(word);
      word = [];
    };
    for (const item of this.characters(text, from, to)) {
      const mark = this.kind(item[0]) === "punctuation";
      if (mark || item[0] === " ") close();
      if (mark) words.push([item]);
      else if (item[0] !== " ") word.push(item);
    }
    close();
    return words;
  }

  // The tokens of a text: {id, start, end}, places in UTF-16 units.
  pieces(text) {
    const found = [];
    let from = 0;
    for (const match of text.matchAll(this.special)) {
      this.plainPieces(text, from, match.index, found);
      from = match.index + match[0].length;
      found.push({ id: this.ids.get(match[0]), start: match.index, end: from });
    }
    this.plainPieces(text, from, text.length, found);
    return found;
  }

  plainPieces(text, from, to, found) {
    for (const word of this.words(text, from, to)) found.push(...this.wordPieces(word));
  }

  // The longest piece in the vocabulary, then the longest of the rest; a word that cannot be spelt is [UNK].
  wordPieces(word) {
    const whole = [{ id: this.unknown, start: word[0][1], end: word.at(-1)[2] }];
    if (word.length > this.longestWord) return whole;
    const found = [];
    for (let first = 0, last; first < word.length; first = last) {
      let id, piece = first ? "##" : "";
      last = first;
      for (let next = first; next < word.length; next++) {
        piece += word[next][0];
        if (this.ids.has(piece)) [id, last] = [this.ids.get(piece), next + 1];
      }
      if (id === undefined) return whole;
      found.push({ id, start: word[first][1], end: word[last - 1][2] });
    }
    return found;
  }

  // [CLS] first [SEP], or [CLS] first [SEP] second [SEP]: numbers, token types, places.
  assemble(first, second) {
    const input = { ids: [this.cls], types: [0], places: [null] };
    [first, second].forEach((pieces, type) => {
      if (!pieces) return;
      for (const { id, start, end } of pieces) {
        input.ids.push(id);
        input.types.push(type);
        input.places.push({ text: type, start, end });
      }
      input.ids.push(this.sep);
      input.types.push(type);
      input.places.push(null);
    });
    return input;
  }

  // One text or a pair, cut to `maxLength` tokens as `truncation=True` cuts: the longer text first.
  encode(texts, maxLength) {
    const [first, second] = texts.map(text => this.pieces(text));
    const room = maxLength - texts.length - 1, all = first.length + (second?.length ?? 0);
    if (all > room) {
      if (!second) first.length = room;
      else {
        let [short, long] = [first, second].sort((a, b) => a.length - b.length).map(pieces => pieces.length);
        long = short > room ? short : Math.max(short, room - short);
        if (short + long > room) [short, long] = [room >> 1, (room >> 1) + (room % 2)];
        const firstIsLonger = first.length > second.length;
        first.length = Math.min(first.length, firstIsLonger ? long : short);
        second.length = Math.min(second.length, firstIsLonger ? short : long);
      }
    }
    return { ...this.assemble(first, second), tokensInAll: all + texts.length + 1 };
  }

  // A question with its paragraph, in as many windows as it takes; neighbours share `overlap` tokens.
  windows(question, paragraph, maxLength, overlap) {
    const asked = this.pieces(question.trim()), context = this.pieces(paragraph);
    const room = maxLength - 3 - asked.length, found = [];
    if (room <= overlap) throw new RangeError("The question is too long: shorten it to a sentence or two.");
    for (let start = 0; ; start += room - overlap) {
      found.push(this.assemble(asked, context.slice(start, start + room)));
      if (start + room >= context.length) return found;
    }
  }
}
