/** Files of the host, in this process; for what is done to a mount see file-tools.ts. */
import { access, open } from 'node:fs/promises';

export const exists = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  );

/** Some bytes of a file become others. */
export const patch = async (
  path: string,
  at: number,
  bytes: Uint8Array | readonly number[],
): Promise<void> => {
  const file = await open(path, 'r+');
  try {
    await file.write(Buffer.from(bytes), 0, bytes.length, at);
  } finally {
    await file.close();
  }
};
