import { mountSuite } from './suite.ts';

mountSuite({
  backend: 'kernel',
  capabilities: {
    fallocate: true,
    seekHoles: true,
    setTimes: true,
    writebackCache: true,
    keepsCache: true,
  },
});
