/** Questions that are put together, all of one turn of the event loop. */

export class Batch<Item, Answer> {
  readonly #ask: (items: readonly Item[]) => Promise<readonly Answer[]>;
  #items: Item[] = [];
  #answers: Promise<readonly Answer[]> | null = null;

  /** `ask`: one answer for each item, in order. */
  constructor(ask: (items: readonly Item[]) => Promise<readonly Answer[]>) {
    this.#ask = ask;
  }

  /** The item's answer; undefined when there was none for it. Errors: those of `ask`. */
  async add(item: Item): Promise<Answer | undefined> {
    const index = this.#items.push(item) - 1;
    this.#answers ??= new Promise((resolve) => setImmediate(resolve)).then(() => {
      const items = this.#items;
      this.#items = [];
      this.#answers = null;
      return this.#ask(items);
    });
    return (await this.#answers)[index];
  }
}
