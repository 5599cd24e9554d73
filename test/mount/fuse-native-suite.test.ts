import { mountSuite } from './suite.ts';

mountSuite({
  backend: 'fuse-native',
  capabilities: {
    fallocate: false,
    seekHoles: false,
    setTimes: false,
    writebackCache: false,
    keepsCache: false,
  },
});
