"""Checks with h5py the files that `views.lua write FOLDER` has made: both names of every packed
parameter read the true values, converted and raw.

Usage: read_views.py FILE...
       read_views.py --break FILE     takes the source of the stacked view away
"""
import sys

import h5py
import numpy as np

GROUP = 'model/layers/0/experts'
SHAPES = {'weight': (4, 6), 'bias': (4,)}


def expect(what, condition):
    if not condition:
        sys.exit(f'read_views: {what}')


def expert(shape, g):
    n = int(np.prod(shape))
    return ((g * 7 + np.arange(n)) % 251 - 125).astype('<f4').reshape(shape)


def raw(d):
    """The stored bits as numbers of the dataset's size: the fast way for bfloat16."""
    bits = np.empty(d.shape, '<u2' if d.attrs['dtype'] == b'bfloat16' else '<u4')
    d.id.read(h5py.h5s.ALL, h5py.h5s.ALL, bits, d.id.get_type())
    return bits


def check(path):
    with h5py.File(path, 'r') as f:
        group = f[GROUP]
        single = group.attrs['weight_layout'] == b'single'
        views = 0
        for name, shape in SHAPES.items():
            parts = [expert(shape, g) for g in range(12)]
            for where, value in [(name, np.stack(parts))] + [(f'{name}{g}', parts[g])
                                                             for g in range(12)]:
                d = group[where]
                views += d.is_virtual
                expect(f'{path}: {where} is real or a view by the layout',
                       d.is_virtual == (single != (where == name)))
                expect(f'{path}: {where} says what it is',
                       d.is_virtual == (d.attrs.get('kind') == b'view'))
                got = d[...]
                expect(f'{path}: {where} is shown as {got.dtype}', got.dtype == np.dtype('<f4'))
                expect(f'{path}: values of {where}', np.array_equal(got, value))
                bits = value.view('<u4')
                if d.attrs['dtype'] == b'bfloat16':
                    bits = (bits >> 16).astype('<u2')
                expect(f'{path}: bits of {where}', np.array_equal(raw(d), bits))
                if d.is_virtual:
                    source = d.virtual_sources()[0]
                    expect(f'{path}: {where} comes from {source}',
                           source.file_name == '.' and source.dset_name.startswith('/' + GROUP))
                    expect(f'{path}: {where} is filled with NaN', np.isnan(d.fillvalue))
        expect(f'{path} has {views} views', views == (24 if single else 2))


def break_view(path):
    with h5py.File(path, 'r+') as f:
        del f[GROUP]['weight3']
        expect('a lost source shows as NaN', np.isnan(f[GROUP]['weight'][3]).all())


if sys.argv[1] == '--break':
    break_view(sys.argv[2])
else:
    for path in sys.argv[1:]:
        check(path)
