/** The drivers that exist, by name; `drivers/index.ts` is the only list. */
import { BlockError } from '../base/block-error.ts';
import type { DriverDescriptor } from './driver.ts';
import { schemeOf, withoutPassword } from './remote-url.ts';

export class DriverRegistry {
  readonly formats: readonly DriverDescriptor[];
  readonly #byName = new Map<string, DriverDescriptor>();

  constructor(descriptors: readonly DriverDescriptor[]) {
    for (const d of descriptors) this.#byName.set(d.name, d);
    this.formats = [...this.#byName.values()].filter((d) => d.role === 'format');
  }

  /** Errors: EINVAL naming the formats there are. */
  format(name: string): DriverDescriptor {
    const found = this.#byName.get(name);
    if (found?.role === 'format') return found;
    const names = this.formats.map((d) => d.name).join(', ');
    throw new BlockError({
      kind: 'unsupported',
      errno: 'EINVAL',
      message: `unknown format '${name}'`,
      hint: `known formats: ${names}`,
    });
  }

  protocol(name: string): DriverDescriptor {
    const found = this.#byName.get(name);
    if (found?.role === 'protocol') return found;
    throw new BlockError({ kind: 'unsupported', message: `unknown protocol '${name}'` });
  }

  /** The protocol driver of a path: by the scheme of a URL, else `file`. Errors: EOPNOTSUPP naming the schemes there are. */
  protocolFor(path: string): DriverDescriptor {
    const scheme = schemeOf(path);
    if (scheme === null) return this.protocol('file');
    const protocols = [...this.#byName.values()].filter((d) => d.role === 'protocol');
    const found = protocols.find((d) => d.schemes?.includes(scheme) === true);
    if (found !== undefined) return found;
    throw new BlockError({
      kind: 'unsupported',
      message: `no driver opens '${scheme}:' URLs`,
      hint: `there are ${protocols.flatMap((d) => d.schemes ?? []).join(', ')}`,
      path: withoutPassword(path),
      op: 'open',
    });
  }
}
