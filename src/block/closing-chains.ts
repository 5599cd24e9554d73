/**
 * Chains that are being closed. Their layers count as open until they are, however soon that is: who needs a file to himself
 * waits for them, in place of being told that it is in use.
 */
import { BlockError } from '../base/block-error.ts';
import { endsWithin, GIVE_UP_MS } from '../base/bounded-wait.ts';
import type { Node } from './node.ts';

interface ClosingChain {
  readonly top: Node;
  /** What is closed now; it and what lies below it are still used. */
  at: Node;
  readonly end: Promise<void>;
}

/** Of one closing; it never fails. */
export interface Closing {
  reached(node: Node): void;
  ended(): void;
}

export class ClosingChains {
  readonly #identityOf: (node: Node) => string;
  readonly #chains = new Set<ClosingChain>();

  /** `identityOf`: see `keyOf`. */
  constructor(identityOf: (node: Node) => string) {
    this.#identityOf = identityOf;
  }

  begin(top: Node): Closing {
    let end = (): void => undefined;
    const ended = new Promise<void>((resolve) => {
      end = resolve;
    });
    const chain: ClosingChain = { top, at: top, end: ended };
    this.#chains.add(chain);
    return {
      reached: (node) => {
        chain.at = node;
      },
      ended: () => {
        this.#chains.delete(chain);
        end();
      },
    };
  }

  /** Returns when no closing uses one of the files. Errors: EBUSY when that takes longer than `limitMs`, naming what hangs. */
  async whenLetGo(identities: readonly string[], limitMs: number = GIVE_UP_MS): Promise<void> {
    const endMs = performance.now() + limitMs;
    for (;;) {
      const found = this.#userOf(identities);
      if (found === null) return;
      const { chain, used } = found;
      if (await endsWithin(chain.end, endMs - performance.now())) continue;
      const message = `'${chain.top.path}' still uses it: it is being closed, and does not end`;
      throw new BlockError({ kind: 'busy', message, path: used.path, op: 'open' });
    }
  }

  #userOf(
    identities: readonly string[],
  ): { readonly chain: ClosingChain; readonly used: Node } | null {
    for (const chain of this.#chains) {
      const used = this.#used(chain.at, identities);
      if (used !== null) return { chain, used };
    }
    return null;
  }

  #used(node: Node, identities: readonly string[]): Node | null {
    if (identities.includes(this.#identityOf(node))) return node;
    for (const below of [...node.dataFiles, node.backing]) {
      const used = below === null ? null : this.#used(below, identities);
      if (used !== null) return used;
    }
    return null;
  }
}
