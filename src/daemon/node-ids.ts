/** Node ids of a mount: a key (device, inode, snapshot) has the same id as long as the mount lives; ids are never reused. */
export class NodeIds {
  readonly #byKey = new Map<string, number>();
  /** 1 is the root. */
  #next = 2;

  idsFor(keys: readonly string[]): number[] {
    return keys.map((key) => {
      const known = this.#byKey.get(key);
      if (known !== undefined) return known;
      const id = this.#next++;
      this.#byKey.set(key, id);
      return id;
    });
  }
}
