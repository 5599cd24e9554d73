/** What is there: devices, nodes, their counters; and the size of a device. */
import type { Node } from '../../block/node.ts';
import { JobError } from '../../job/job-error.ts';
import { type ControlContext, chainOf, type Device, deviceNamed } from '../context.ts';
import { defineQmp, flag, integer, optional, type QmpCommand, text } from '../schema.ts';

const NO_THROTTLING = { bps: 0, bps_rd: 0, bps_wr: 0, iops: 0, iops_rd: 0, iops_wr: 0 };
const CACHE = { writeback: true, direct: false, 'no-flush': false };

/** A list of QEMU's BlockDirtyInfo, where there are any; what only a job knows is left out. */
const bitmapsOf = ({ dirtyBitmaps }: Node): object => {
  const named = [...dirtyBitmaps.bitmaps].filter(({ name }) => name !== null);
  const infos = named.map((bitmap) => ({
    name: bitmap.name,
    count: bitmap.content.dirtyBytes,
    granularity: bitmap.content.granularityBytes,
    recording: bitmap.recording,
    busy: bitmap.user !== null,
    persistent: bitmap.persistent,
    ...(bitmap.inconsistent ? { inconsistent: true } : {}),
  }));
  return infos.length === 0 ? {} : { 'dirty-bitmaps': infos };
};

/** QEMU's BlockDeviceInfo. */
const nodeInfo = async (context: ControlContext, node: Node): Promise<object> => {
  const depth = chainOf(node).length - 1;
  return {
    'node-name': node.name,
    file: node.path,
    ro: node.readOnly,
    drv: node.descriptor.name,
    ...(node.backing === null ? {} : { backing_file: node.backing.path }),
    backing_file_depth: depth,
    encrypted: false,
    detect_zeroes: 'off',
    write_threshold: 0,
    ...bitmapsOf(node),
    ...NO_THROTTLING,
    cache: CACHE,
    image: await context.imageInfo(node),
  };
};

/** QEMU's BlockInfo. A view that was not opened yet is opened for it; one that cannot be has nothing inserted. */
const deviceInfo = async (context: ControlContext, device: Device): Promise<object> => {
  const root = await device.view.open().catch(() => null);
  return {
    device: device.name,
    type: 'unknown',
    locked: false,
    removable: false,
    ...(root === null ? {} : { inserted: await nodeInfo(context, root) }),
  };
};

const statisticsOf = (node: Node): object => {
  const { reads, readBytes, writes, writtenBytes, flushes } = node.statistics;
  return {
    rd_bytes: readBytes,
    rd_operations: reads,
    wr_bytes: writtenBytes,
    wr_operations: writes,
    flush_operations: flushes,
    wr_highest_offset: 0,
  };
};

const statisticsTree = (node: Node, device: string | null): object => ({
  ...(device === null ? {} : { device }),
  'node-name': node.name,
  stats: statisticsOf(node),
  ...(node.file === null ? {} : { parent: statisticsTree(node.file, null) }),
  ...(node.backing === null ? {} : { backing: statisticsTree(node.backing, null) }),
});

export const blockQueries: readonly QmpCommand<ControlContext>[] = [
  defineQmp({
    name: 'query-block',
    arguments: {},
    returns: 'BlockInfoList',
    run: async (context: ControlContext) => {
      const infos: object[] = [];
      for (const device of await context.devices()) infos.push(await deviceInfo(context, device));
      return infos;
    },
  }),
  defineQmp({
    name: 'query-named-block-nodes',
    arguments: { flat: optional(flag) },
    returns: 'BlockDeviceInfoList',
    run: async (context: ControlContext) => {
      const infos: object[] = [];
      for (const node of context.nodes()) infos.push(await nodeInfo(context, node));
      return infos;
    },
  }),
  defineQmp({
    name: 'query-blockstats',
    arguments: { 'query-nodes': optional(flag) },
    returns: 'BlockStatsList',
    run: async (context: ControlContext, given) => {
      if (given['query-nodes'] === true) {
        return context.nodes().map((node) => statisticsTree(node, null));
      }
      const devices = await context.devices();
      return devices.flatMap(({ name, view }) =>
        view.root === null ? [] : [statisticsTree(view.root, name)],
      );
    },
  }),
  defineQmp({
    name: 'block_resize',
    arguments: { device: optional(text), 'node-name': optional(text), size: integer },
    returns: 'nothing',
    run: async (context: ControlContext, given) => {
      const name = given.device ?? given['node-name'];
      if (name === undefined) throw new JobError("Parameter 'device' is missing");
      if (given.size < 0) throw new JobError("Parameter 'size' expects a >0 size");
      await context.setSize(await deviceNamed(context, name), given.size);
      return {};
    },
  }),
];
