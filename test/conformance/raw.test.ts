import { truncate, writeFile } from 'node:fs/promises';
import { raw } from '../../drivers/raw/index.ts';
import { conformance } from './suite.ts';

conformance({
  descriptor: raw,
  variants: [
    {
      label: 'sparse',
      make: async (path, bytes) => {
        await writeFile(path, '');
        await truncate(path, bytes);
      },
    },
    { label: 'full', make: (path, bytes) => writeFile(path, new Uint8Array(bytes).fill(0x77)) },
  ],
  verify: async () => undefined,
});
