/** The notifier's thread; see notifier.ts. */
import { writeSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { present } from '../../src/base/assert.ts';

const { descriptor } = workerData as { readonly descriptor: number };
const port = present(parentPort, 'a worker has a parent');

port.on('message', (message: Uint8Array | null) => {
  if (message === null) {
    port.close();
    return;
  }
  try {
    writeSync(descriptor, message);
  } catch {
    // ENOENT: the kernel does not know the name. ENODEV: the mount is going. Names time out by themselves in a second.
  }
});
