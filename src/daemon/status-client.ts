/** Asking a mount's engine for its status over the control socket. */
import { createConnection } from 'node:net';
import { resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { extendedAttribute } from '../os/linux.ts';
import { vdiskfsMounts } from './mount-table.ts';
import { mountId, runtimeDirectory } from './runtime-directory.ts';

/** An engine that is starting again answers a moment later. */
const PATIENCE_MS = 5000;

export interface ViewStatusDocument {
  readonly name: string;
  readonly path: string;
  readonly format: string | null;
  readonly virtualSizeBytes: number;
  readonly allocatedBytes: number;
  readonly chain: readonly { readonly path: string; readonly format: string }[];
  readonly readOnlyReason: string | null;
  readonly error: string | null;
  readonly open: boolean;
  readonly handles: number;
  readonly metadataBytes: number;
}

export interface MountStatus {
  readonly mountpoint: string;
  readonly source: string;
  readonly backend: string;
  readonly 'read-only': boolean;
  readonly threads: number;
  readonly pid: number;
  readonly 'supervisor-pid': number;
  readonly generation: number;
  readonly counters: {
    readonly requests: number;
    readonly readBytes: number;
    readonly writtenBytes: number;
    readonly faults: number;
    readonly hits: number;
    readonly tableBytes: number;
  };
  readonly views: readonly ViewStatusDocument[];
  readonly ignored: readonly { readonly path: string; readonly reason: string }[];
}

/** The mount at a path, or every mount of this machine. Errors: EINVAL for no mount of ours; ETIMEDOUT, ECONNREFUSED. */
export const mountStatus = async (path: string | null): Promise<readonly MountStatus[]> => {
  const mounts = vdiskfsMounts();
  if (path === null) return Promise.all(mounts.map((m) => queryStatus(m.mountpoint)));
  const mountpoint = resolve(path);
  if (!mounts.some((m) => m.mountpoint === mountpoint)) {
    throw new BlockError({
      kind: 'bad-request',
      message: 'is no vdiskfs mount',
      path,
      op: 'status',
    });
  }
  return [await queryStatus(mountpoint)];
};

/** Where a mount's control socket is: the root says it, and a mount that does not answer has the usual place. */
const socketOf = async (mountpoint: string): Promise<string> => {
  const patience = sleep(PATIENCE_MS, null, { ref: false });
  const told = await Promise.race([extendedAttribute(mountpoint, 'user.vdiskfs.socket'), patience]);
  return told ?? `${runtimeDirectory()}/${mountId(mountpoint)}.sock`;
};

/** Errors: ETIMEDOUT, ECONNREFUSED, ENOENT. */
export const queryStatus = async (mountpoint: string): Promise<MountStatus> =>
  ask(mountpoint, await socketOf(mountpoint));

const ask = (mountpoint: string, path: string): Promise<MountStatus> =>
  new Promise((resolvePromise, reject) => {
    const socket = createConnection(path);
    const lines = createInterface({ input: socket });
    const fail = (error: BlockError): void => {
      socket.destroy();
      reject(error);
    };
    socket.setTimeout(PATIENCE_MS, () =>
      fail(
        new BlockError({
          kind: 'io',
          errno: 'ETIMEDOUT',
          message: 'the engine does not answer',
          path: mountpoint,
        }),
      ),
    );
    socket.on('error', (error) => fail(toBlockError(error, { op: 'status', path })));
    lines.on('error', () => undefined);
    lines.on('line', (line) => {
      const message = JSON.parse(line) as { QMP?: unknown; return?: unknown; id?: unknown };
      if (message.QMP !== undefined) {
        socket.write('{"execute":"qmp_capabilities"}\n{"execute":"__vdiskfs_status","id":1}\n');
      } else if (message.id === 1) {
        socket.end();
        lines.close();
        if (message.return !== undefined) resolvePromise(message.return as MountStatus);
        else fail(new BlockError({ kind: 'io', message: `status: ${line}`, path: mountpoint }));
      }
    });
  });
