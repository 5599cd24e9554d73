/** Reaching a mount's engine over its control socket, and asking for its status. */
import { resolve } from 'node:path';
import { BlockError } from '../base/block-error.ts';
import { endsWithin } from '../base/bounded-wait.ts';
import { mayBeLeft } from '../base/left-calls.ts';
import { QmpClient } from '../control/client.ts';
import type { BlockJobInfo } from '../job/job-info.ts';
import { extendedAttribute } from '../os/mounts.ts';
import { vdiskfsMounts } from './mount-table.ts';
import { mountId, runtimeDirectory } from './runtime-directory.ts';

/** An engine that is starting again answers a moment later. */
const PATIENCE_MS = 5000;

export interface ViewStatusDocument {
  readonly name: string;
  readonly path: string;
  /** The file that the view was made for, when it has gone on over another one; else null. */
  readonly standsInFor: string | null;
  readonly format: string | null;
  readonly virtualSizeBytes: number;
  readonly allocatedBytes: number;
  readonly chain: readonly { readonly path: string; readonly format: string }[];
  readonly readOnlyReason: string | null;
  readonly error: string | null;
  readonly open: boolean;
  /** False while another host may use the image. */
  readonly active: boolean;
  readonly handles: number;
  readonly metadataBytes: number;
}

export interface MountStatus {
  readonly mountpoint: string;
  readonly source: string;
  readonly backend: string;
  /** Views go on when the engine dies or is swapped, and images can be handed over to another host. */
  readonly 'outlives-engine': boolean;
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
  readonly jobs: readonly BlockJobInfo[];
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
  const asked = mayBeLeft(extendedAttribute(mountpoint, 'user.vdiskfs.socket'));
  const told = (await endsWithin(asked, PATIENCE_MS)) ? await asked : null;
  return told ?? `${runtimeDirectory()}/${mountId(mountpoint)}.sock`;
};

/** Errors: ETIMEDOUT, ECONNREFUSED, ENOENT. */
export const connectToMount = async (mountpoint: string): Promise<QmpClient> =>
  QmpClient.connect(await socketOf(mountpoint), mountpoint);

/** Errors: as `connectToMount`. */
export const queryStatus = async (mountpoint: string): Promise<MountStatus> => {
  const client = await connectToMount(mountpoint);
  try {
    return (await client.execute('__vdiskfs_status')) as MountStatus;
  } finally {
    client.close();
  }
};
