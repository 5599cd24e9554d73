/**
 * JSON values out of a stream of bytes, as QMP sends them: no separators needed, strings in single quotes as well, a byte
 * 0xFF begins anew. Whatever comes, memory and depth are bounded.
 */

/** A longer message is an error, and what follows it up to the next line end is skipped. */
const MAX_MESSAGE_BYTES = 1 << 20;
const MAX_DEPTH = 128;

const BYTE = {
  newline: 0x0a,
  quote: 0x22,
  apostrophe: 0x27,
  backslash: 0x5c,
  opening: new Set([0x5b, 0x7b]),
  closing: new Set([0x5d, 0x7d]),
  blank: new Set([0x09, 0x0a, 0x0d, 0x20]),
  reset: 0xff,
} as const;

export type JsonItem = { readonly value: unknown } | { readonly error: string };

export class JsonStream {
  #bytes: number[] = [];
  #depth = 0;
  /** The quote that ends the string we are in; 0 outside of one. */
  #quote = 0;
  #escaped = false;
  #skipping = false;

  /** What has become complete with these bytes. */
  push(chunk: Uint8Array): JsonItem[] {
    const items: JsonItem[] = [];
    for (const byte of chunk) {
      const item = this.#take(byte);
      if (item !== null) items.push(item);
    }
    return items;
  }

  #take(byte: number): JsonItem | null {
    if (byte === BYTE.reset) {
      this.#reset();
      this.#skipping = false;
      return null;
    }
    if (this.#skipping) {
      this.#skipping = byte !== BYTE.newline;
      return null;
    }
    if (this.#bytes.length === 0 && BYTE.blank.has(byte)) return null;
    this.#bytes.push(byte);
    if (this.#bytes.length > MAX_MESSAGE_BYTES) {
      return this.#broken(`JSON message of more than ${MAX_MESSAGE_BYTES} bytes`);
    }
    return this.#quote === 0 ? this.#outside(byte) : this.#inside(byte);
  }

  #inside(byte: number): JsonItem | null {
    if (this.#escaped) this.#escaped = false;
    else if (byte === BYTE.backslash) this.#escaped = true;
    else if (byte === this.#quote) {
      this.#quote = 0;
      if (this.#depth === 0) return this.#complete();
    }
    return null;
  }

  #outside(byte: number): JsonItem | null {
    if (byte === BYTE.quote || byte === BYTE.apostrophe) this.#quote = byte;
    else if (BYTE.opening.has(byte)) {
      if (++this.#depth > MAX_DEPTH) return this.#broken(`JSON nested deeper than ${MAX_DEPTH}`);
    } else if (BYTE.closing.has(byte)) {
      if (this.#depth <= 1) return this.#complete();
      this.#depth--;
    } else if (this.#depth === 0 && BYTE.blank.has(byte)) return this.#complete();
    return null;
  }

  #complete(): JsonItem {
    const bytes = Uint8Array.from(this.#bytes);
    this.#reset();
    try {
      const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
      return { value: JSON.parse(withDoubleQuotes(text)) as unknown };
    } catch {
      return { error: 'JSON parse error' };
    }
  }

  #broken(error: string): JsonItem {
    this.#reset();
    this.#skipping = true;
    return { error };
  }

  #reset(): void {
    this.#bytes = [];
    this.#depth = 0;
    this.#quote = 0;
    this.#escaped = false;
  }
}

const STRING = /"(?:[^"\\]|\\[\s\S])*"|'(?:[^'\\]|\\[\s\S])*'/g;

const withDoubleQuotes = (text: string): string =>
  text.includes("'")
    ? text.replace(STRING, (literal) =>
        literal.startsWith("'")
          ? `"${literal.slice(1, -1).replaceAll("\\'", "'").replaceAll('"', '\\"')}"`
          : literal,
      )
    : text;

/** Output is ASCII, as QEMU's is. */
export const asciiJson = (message: unknown): string =>
  JSON.stringify(message).replace(
    /[\u0080-\uffff]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
