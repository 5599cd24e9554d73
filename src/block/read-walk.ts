/** The walk of a read through a layer: to the files that its pieces lie in, and down to its backing for what it does not have. */
import { assert } from '../base/assert.ts';
import { Parts } from '../base/parts.ts';
import { type GuestOffset, guestOffset } from '../base/units.ts';
import type { CopyOnRead } from './copy-on-read.ts';
import type { Mapping } from './driver.ts';
import type { Node } from './node.ts';

/**
 * Fills the buffer with a range inside of the node, whose epochs the caller has entered. `copyOnRead` keeps what comes from the
 * backing; null: nobody does. Errors: of the driver and of the nodes below; then too nothing writes to the buffer any more.
 */
export const readLayer = (
  node: Node,
  offset: GuestOffset,
  buffer: Uint8Array,
  copyOnRead: CopyOnRead | null,
): Promise<void> =>
  node.descriptor.role === 'protocol'
    ? readOwn(node, offset, buffer)
    : readMapped(node, offset, buffer, copyOnRead);

const readOwn = async (node: Node, offset: GuestOffset, buffer: Uint8Array): Promise<void> => {
  const { driver, descriptor } = node;
  assert(driver.read !== undefined, `${descriptor.name} reads what it maps as opaque`);
  await driver.read(offset, buffer);
};

// Pieces are read at the same time: a request over many fragments costs one round trip, not one each.
const readMapped = async (
  node: Node,
  offset: GuestOffset,
  buffer: Uint8Array,
  copyOnRead: CopyOnRead | null,
): Promise<void> => {
  const pieces = new Parts();
  let done = 0;
  try {
    while (done < buffer.length) {
      const at = guestOffset(offset + done);
      const found = node.driver.mapping(at, buffer.length - done);
      const m = found instanceof Promise ? await found : found;
      assert(
        m.lengthBytes > 0 && m.lengthBytes <= buffer.length - done,
        'a mapping covers at least one byte and no more than was asked',
      );
      const piece = buffer.subarray(done, done + m.lengthBytes);
      const pending = readPiece(node, m, at, piece, copyOnRead);
      if (pending !== null) pieces.add(pending);
      done += m.lengthBytes;
    }
  } catch (error) {
    // The buffer goes back to the caller only when nothing writes to it any more.
    await pieces.settled();
    throw error;
  }
  await pieces.results();
};

const readPiece = (
  node: Node,
  m: Mapping,
  at: GuestOffset,
  piece: Uint8Array,
  copyOnRead: CopyOnRead | null,
): Promise<void> | null => {
  const { backing } = node;
  switch (m.kind) {
    case 'data':
      return m.file.readClipped(guestOffset(m.hostOffset), piece);
    case 'opaque':
      return readOwn(node, at, piece);
    case 'zero':
      piece.fill(0);
      return null;
    case 'unallocated':
      if (backing !== null && at < backing.lengthBytes) {
        return copyOnRead?.read(at, piece) ?? backing.readClipped(at, piece);
      }
      piece.fill(0);
      return null;
  }
};
