/** Changing an image's virtual size: `vdiskfs resize`. */
import { BlockError } from '../base/block-error.ts';
import { guestOffset } from '../base/units.ts';
import { type OfflineContext, openImage } from './open.ts';

export type Preallocation = 'off' | 'metadata' | 'falloc' | 'full';

export interface ResizeRequest {
  readonly path: string;
  readonly format: string | null;
  /** The new size, or what is added to the old one (negative: taken off). */
  readonly size: { readonly bytes: number; readonly isRelative: boolean };
  /** Making it smaller is meant. */
  readonly shrink: boolean;
  /** Of what is added. */
  readonly preallocation: Preallocation;
}

const ZERO_BYTES = 1 << 20;

/** Returns the new size in bytes. Errors: EINVAL for a smaller size that is not meant; those of the image. */
export const resizeImage = async (
  request: ResizeRequest,
  context: OfflineContext,
): Promise<number> => {
  const { path, size, preallocation } = request;
  const wrong = (message: string, hint?: string): BlockError =>
    new BlockError({ kind: 'bad-request', message, hint, path, op: 'resize' });
  await using image = await openImage(path, request.format, context, { writable: true });
  const { root } = image;
  const old = root.lengthBytes;
  const now = size.isRelative ? old + size.bytes : size.bytes;
  if (now < 0) throw wrong(`has ${old} bytes: ${-size.bytes} cannot be taken off`);
  if (now < old && !request.shrink) {
    throw wrong(
      `would become smaller (${old} to ${now} bytes), and lose what lies past the new end`,
      'give --shrink if that is meant',
    );
  }
  if (now < old && preallocation !== 'off') throw wrong('preallocation is for growing');
  if (preallocation === 'metadata' && root.driver.preallocate === undefined)
    throw wrong(`the format ${root.descriptor.name} has no tables to make before they are needed`);
  await root.resize(now);
  const added = root.lengthBytes - old;
  if (added > 0 && (preallocation === 'metadata' || preallocation === 'falloc'))
    await root.preallocate(guestOffset(old), added, { space: preallocation === 'falloc' });
  if (added > 0 && preallocation === 'full') {
    for (let done = 0; done < added; done += ZERO_BYTES) {
      const bytes = new Uint8Array(Math.min(ZERO_BYTES, added - done));
      await root.write(guestOffset(old + done), bytes);
    }
  }
  await root.flush();
  return root.lengthBytes;
};
