/** Measures one row: both servers on copies of the same image, in pairs. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { DiskKind, Disks } from './disks.ts';
import { type Compared, comparePairs, type Metrics, SETTLED_MS } from './rounds.ts';
import type { Row, Target } from './rows.ts';
import {
  type Serve,
  type ServerOptions,
  servePlainFile,
  serveQemu,
  serveVdiskfs,
} from './servers.ts';

export interface Measured extends Compared {
  readonly row: string;
  readonly target: Target | null;
  /** Null: nothing to reach. */
  readonly holds: boolean | null;
}

/** Null: nothing to reach. */
export const verdictOf = (target: Target | null, ratio: number): boolean | null => {
  if (target?.atLeast !== undefined) return ratio >= target.atLeast;
  return target?.atMost === undefined ? null : ratio <= target.atMost;
};

const SERVERS: Readonly<Record<Row['against'], Serve>> = {
  qemu: serveQemu,
  'plain file': servePlainFile,
  'our own view': serveVdiskfs,
};

const formatOf = (disk: DiskKind): ServerOptions['format'] => {
  if (disk === 'add-cow-full' || disk === 'add-cow-overlay') return 'add-cow';
  return disk === 'full-raw' ? 'raw' : 'qcow2';
};

export const measureRow = async (
  row: Row,
  disks: Disks,
  scratch: string,
  pairs: number,
): Promise<readonly Measured[]> => {
  const kept: string[] = [];
  const side = (serve: Serve, disk: DiskKind, measure = row.measure): (() => Promise<Metrics>) => {
    let image: string | null = null;
    return async () => {
      if (image === null) {
        image = await disks.make(disk);
        kept.push(image);
      }
      const used = row.fresh ? await disks.make(disk) : image;
      const served = await serve(used, {
        scratch,
        format: formatOf(disk),
        ...(row.l2CacheBytes === undefined ? {} : { l2CacheBytes: row.l2CacheBytes }),
        ...(row.passthrough === undefined ? {} : { passthrough: row.passthrough }),
      });
      if (row.fresh) await sleep(SETTLED_MS);
      try {
        return await measure(served.path, scratch);
      } finally {
        await served.close();
        if (row.fresh) await disks.discard(used);
      }
    };
  };
  try {
    const compared = await comparePairs(
      pairs,
      side(serveVdiskfs, row.disk),
      side(SERVERS[row.against], row.otherDisk ?? row.disk, row.measureOther),
    );
    return compared.map((c) => {
      const target = row.targets.find((t) => t.metric === c.metric) ?? null;
      return { ...c, row: row.name, target, holds: verdictOf(target, c.ratio.median) };
    });
  } finally {
    for (const image of kept) await disks.discard(image);
  }
};
