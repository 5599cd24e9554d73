/**
 * The `nbd` protocol: an export of an NBD server (nbd://, nbd+unix://), read and written.
 *
 * docs/REMOTE.md says what is expected of servers and what happens when they go away.
 */
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import type { DriverDescriptor, DriverInstance, OpenPathRequest } from '../../src/block/driver.ts';
import { withoutPassword } from '../../src/block/remote-url.ts';
import { parseNbdUrl } from './address.ts';
import { NBD_LIMITS, type NbdLimits } from './limits.ts';

const openPath = async (request: OpenPathRequest, limits: NbdLimits): Promise<DriverInstance> => {
  const path = withoutPassword(request.path);
  if (request.create) {
    const message = 'an export of an NBD server cannot be made from here';
    throw new BlockError({ kind: 'unsupported', message, path, op: 'open' });
  }
  const address = parseNbdUrl(request.path);
  const [{ openSession }, { RemoteDisk }] = await Promise.all([
    import('./session.ts'),
    import('./remote-disk.ts'),
  ]);
  try {
    const session = await openSession({ address, limits, log: request.log, name: path });
    const disk = new RemoteDisk(session);
    if (request.readOnly || disk.remote.isWritable) return disk;
    await disk.close();
    throw new BlockError({ kind: 'read-only', message: 'the server gives it for reading only' });
  } catch (error) {
    throw toBlockError(error, { op: 'open', path });
  }
};

/** The driver with limits of one's own: tests wait less. */
export const nbdDriver = (limits: Partial<NbdLimits> = {}): DriverDescriptor => ({
  name: 'nbd',
  role: 'protocol',
  // The secure ones are refused with a reason.
  schemes: ['nbd', 'nbd+unix', 'nbds', 'nbds+unix'],
  capabilities: {
    write: true,
    backing: false,
    zeroWithoutSpace: true,
    discard: true,
    grow: false,
    shrink: false,
    create: false,
    check: false,
    repair: false,
    internalSnapshots: false,
    compressedWrite: false,
  },
  createOptions: [],
  openPath: (request) => openPath(request, { ...NBD_LIMITS, ...limits }),
});

export const nbd: DriverDescriptor = nbdDriver();
