/** Which files a mount may open. */
import { type OpenGate, openGate, placesBeside } from '../../src/block/open-gate.ts';
import { resolveSource } from './listing.ts';

/**
 * The gate of a mount: source directories, what lies beside single files and URLs, and `--backing-dir`s are allowed;
 * `mountpoint` (real path, or null) is never entered. Errors: ENOENT and those of the host.
 */
export const sourceGate = async (options: {
  readonly sources: readonly { readonly name: string | null; readonly path: string }[];
  readonly backingDirectories: readonly string[];
  readonly mountpoint: string | null;
}): Promise<OpenGate> => {
  const sources = await Promise.all(
    options.sources.map((source) => resolveSource(source, options.mountpoint)),
  );
  const places = sources.flatMap((s) => (s.isDirectory ? [s.path] : placesBeside(s.path)));
  return openGate([...places, ...options.backingDirectories], options.mountpoint);
};
