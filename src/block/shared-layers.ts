/**
 * Read-only layers that several chains use: each is opened once for one file (same device and inode, or same URL) and one
 * declared format, counted, and closed by whoever uses it last.
 *
 * A user counts from when it asks, and one that lets go no more from when it says so: nobody gets a layer that somebody closes.
 */
import { present } from '../base/assert.ts';
import type { Node } from './node.ts';

interface SharedLayer {
  readonly opening: Promise<Node>;
  users: number;
}

export class SharedLayers {
  /** By identity and format, while somebody uses them. */
  readonly #layers = new Map<string, SharedLayer>();
  readonly #keyOf = new Map<Node, string>();

  /** One more user of a layer, which `open` opens when it is the first; callers that come meanwhile wait for it. Errors: those of `open`. */
  async use(identity: string, format: string | null, open: () => Promise<Node>): Promise<Node> {
    const key = `${identity}:${format ?? ''}`;
    const known = this.#layers.get(key);
    if (known !== undefined) {
      known.users++;
      return known.opening;
    }
    const layer = { opening: open(), users: 1 };
    this.#layers.set(key, layer);
    try {
      const node = await layer.opening;
      this.#keyOf.set(node, key);
      return node;
    } catch (error) {
      this.#layers.delete(key);
      throw error;
    }
  }

  /** One more user of a layer that has some. */
  useToo(node: Node): void {
    const key = present(this.#keyOf.get(node), 'a layer of a chain is shared');
    present(this.#layers.get(key), 'a layer in use is known').users++;
  }

  /** One user less. True: it was the last one, or the node is not shared at all, and the caller closes it. */
  letGo(node: Node): boolean {
    const key = this.#keyOf.get(node);
    if (key === undefined) return true;
    const layer = present(this.#layers.get(key), 'a layer in use is known');
    if (--layer.users > 0) return false;
    this.#layers.delete(key);
    this.#keyOf.delete(node);
    return true;
  }
}
