/** A directory in which no call ever returns, as on the disk of a server that is gone: a mount that nobody answers for. Needs root. */
import { closeSync } from 'node:fs';
import { handshake } from '../../src/daemon/mount-preparation.ts';
import { mountFuse, unmountFuse } from '../../src/daemon/mounting.ts';
import type { Cleanup } from './scratch.ts';

/** Until the returned function is called, or the test ends: calls that hang fail then. */
export const hang = async (t: Cleanup, directory: string): Promise<() => Promise<void>> => {
  const source = 'hanging-directory';
  const options = { readOnly: false, allowOther: false, flags: 0 };
  const descriptor = await mountFuse({ source, mountpoint: directory, ...options });
  let hangs = true;
  const release = async (): Promise<void> => {
    if (!hangs) return;
    hangs = false;
    closeSync(descriptor);
    await unmountFuse(directory, { lazy: true });
  };
  t.after(release);
  handshake(descriptor, false);
  return release;
};
