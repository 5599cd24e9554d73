/**
 * Node ids of a mount: a key (device, inode, snapshot) has the same id as long as the mount lives, unless an engine asks
 * for a new one with `RENEW_NODE_ID` in front of the key (the file has other content now); ids are never reused.
 */
import { RENEW_NODE_ID } from '../../mount/catalog/catalog-options.ts';

export class NodeIds {
  readonly #byKey = new Map<string, number>();
  /** 1 is the root. */
  #next = 2;

  idsFor(keys: readonly string[]): number[] {
    return keys.map((asked) => {
      const renews = asked.startsWith(RENEW_NODE_ID);
      const key = renews ? asked.slice(RENEW_NODE_ID.length) : asked;
      const known = this.#byKey.get(key);
      if (known !== undefined && !renews) return known;
      const id = this.#next++;
      this.#byKey.set(key, id);
      return id;
    });
  }
}
