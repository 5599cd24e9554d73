/**
 * Node ids of a mount: a key (device, inode, snapshot) has the same id as long as the mount lives, unless an engine asks
 * for a new one with `RENEW_NODE_ID` in front of the key (the file has other content now); ids are never reused.
 */
import { RENEW_NODE_ID } from '../../mount/catalog/catalog-options.ts';

export class NodeIds {
  readonly #byKey = new Map<string, number>();
  /** 1 is the root. */
  #next = 2;
  readonly #given: (ids: readonly (readonly [string, number])[]) => void;

  /** `earlier`: given before, in order. `given` hears of new ones before anybody else does. */
  constructor(options: {
    readonly earlier: readonly (readonly [string, number])[];
    readonly given: (ids: readonly (readonly [string, number])[]) => void;
  }) {
    this.#given = options.given;
    for (const [key, id] of options.earlier) {
      this.#byKey.set(key, id);
      this.#next = Math.max(this.#next, id + 1);
    }
  }

  idsFor(keys: readonly string[]): number[] {
    const fresh: (readonly [string, number])[] = [];
    const ids = keys.map((asked) => {
      const renews = asked.startsWith(RENEW_NODE_ID);
      const key = renews ? asked.slice(RENEW_NODE_ID.length) : asked;
      const known = this.#byKey.get(key);
      if (known !== undefined && !renews) return known;
      const id = this.#next++;
      this.#byKey.set(key, id);
      fresh.push([key, id]);
      return id;
    });
    if (fresh.length > 0) this.#given(fresh);
    return ids;
  }
}
