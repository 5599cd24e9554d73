/** What formats promise holds on an export of an NBD server too. */
import { truncate, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { qcow2 } from '../../drivers/qcow2/index.ts';
import { raw } from '../../drivers/raw/index.ts';
import { nbdkit } from '../support/nbd-server.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import type { Cleanup } from '../support/scratch.ts';
import { conformance } from './suite.ts';

const serve = async (t: Cleanup, path: string): Promise<string> => {
  const server = await nbdkit(t, join(dirname(path), 's'), ['file', `file=${path}`]);
  return server.url;
};

conformance({
  descriptor: { ...raw, capabilities: { ...raw.capabilities, grow: false, shrink: false } },
  variants: [
    {
      label: 'over NBD',
      make: async (path, bytes) => {
        await writeFile(path, '');
        await truncate(path, bytes);
      },
    },
  ],
  verify: async () => undefined,
  serve,
});

conformance({
  descriptor: qcow2,
  variants: [
    {
      label: 'over NBD, with room to grow',
      make: async (path, bytes) => {
        await qemuImg(['create', '-q', '-f', 'qcow2', path, String(bytes)]);
        await truncate(path, 16 << 20);
      },
    },
  ],
  verify: assertClean,
  serve,
});
