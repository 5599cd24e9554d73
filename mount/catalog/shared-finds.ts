/** Finding what headers name: overlays that are looked at at the same time find the base that they share once. */
import { dirname } from 'node:path';
import type { OpenGate } from '../../src/block/open-gate.ts';
import { isUrl } from '../../src/block/remote-url.ts';
import type { FoundFile } from './chain-walk.ts';
import { statHostFile } from './host-file.ts';

interface Link {
  readonly filename: string;
  readonly format: string | null;
}

export class SharedFinds {
  readonly #gate: OpenGate;
  /** That go on, by directory and link. */
  readonly #finding = new Map<string, Promise<FoundFile>>();

  constructor(gate: OpenGate) {
    this.#gate = gate;
  }

  /** Errors: those of the gate and the host, which name the referrer. */
  find(link: Link, referrer: string): Promise<FoundFile> {
    if (isUrl(referrer)) return this.#findAlone(link, referrer);
    const key = JSON.stringify([dirname(referrer), link.filename, link.format]);
    const known = this.#finding.get(key);
    // What has failed for another one is told in words of one's own.
    if (known !== undefined) return known.catch(() => this.#findAlone(link, referrer));
    const finding = this.#findAlone(link, referrer);
    this.#finding.set(key, finding);
    const ended = (): void => {
      this.#finding.delete(key);
    };
    finding.then(ended, ended);
    return finding;
  }

  async #findAlone(link: Link, referrer: string): Promise<FoundFile> {
    const { path, format } = await this.#gate.resolveLink(link, referrer);
    return { host: await statHostFile(path), format };
  }
}
