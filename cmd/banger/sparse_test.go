package main

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDataParts has file systems and guests that answer anything. Each part leads on by a grain,
// and what honest answers call data is in a part.
func TestDataParts(t *testing.T) {
	type seek func(off int64, whence int) (int64, error)
	both := func(at func(off int64) int64) seek {
		return func(off int64, _ int) (int64, error) { return at(off), nil }
	}
	data := func(begin, end int64) seek {
		return func(off int64, whence int) (int64, error) {
			switch {
			case whence == unix.SEEK_HOLE && off >= begin:
				return max(off, end), nil
			case whence == unix.SEEK_DATA && off >= end:
				return 0, unix.ENXIO
			case whence == unix.SEEK_DATA:
				return max(off, begin), nil
			}
			return off, nil
		}
	}
	const size = 10*grain + 5
	for name, c := range map[string]struct {
		seek  seek
		size  int64
		parts []int64 // begins and ends
		count int     // of parts, where it is many
	}{
		"empty":        {data(0, 0), 0, nil, 0},
		"hole":         {data(size, size), size, nil, 0},
		"data":         {data(0, size), size, []int64{0, size}, 1},
		"middle":       {data(3*grain+7, 3*grain+8), size, []int64{3 * grain, 4 * grain}, 1},
		"two grains":   {data(4*grain-1, 4*grain+1), size, []int64{3 * grain, 5 * grain}, 1},
		"a grain":      {data(grain, 2*grain), size, []int64{grain, 2 * grain}, 1},
		"last byte":    {data(size-1, size), size, []int64{10 * grain, size}, 1},
		"beyond":       {both(func(int64) int64 { return math.MaxInt64 }), size, nil, 0},
		"alternations": {both(func(off int64) int64 { return off + 1 }), 1000 * grain, nil, 1000},
		"no progress":  {both(func(off int64) int64 { return off }), 1000 * grain, nil, 1000},
		"backwards":    {both(func(off int64) int64 { return off / 2 }), 1000 * grain, nil, 1000},
		"zero":         {both(func(int64) int64 { return 0 }), size, nil, 11},
		"huge": {data(0, math.MaxInt64), math.MaxInt64 - 1,
			[]int64{0, math.MaxInt64 - 1}, 1},
		"end of huge": {data(math.MaxInt64-9, math.MaxInt64-8), math.MaxInt64 - 1,
			[]int64{math.MaxInt64 &^ (grain - 1), math.MaxInt64 - 1}, 1},
		"no question": {func(int64, int) (int64, error) { return 0, unix.EINVAL }, size,
			[]int64{0, size}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var parts []int64
			err := dataParts(c.size, c.seek, func(at, end int64) error {
				if n := len(parts); end <= at || end > c.size || n > 0 && parts[n-1] > at {
					t.Fatalf("%d to %d follows %v", at, end, parts)
				}
				parts = append(parts, at, end)
				return nil
			})
			if err != nil || len(parts) != 2*c.count {
				t.Fatalf("%d parts, want %d, %v", len(parts)/2, c.count, err)
			}
			for i, want := range c.parts {
				if parts[i] != want {
					t.Errorf("%v, want %v", parts, c.parts)
				}
			}
		})
	}
}

// TestSumOfHoles compares a file with holes to one with zeros, and to others.
func TestSumOfHoles(t *testing.T) {
	dir := t.TempDir()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const size = 3*copyBuffer + 100
	sum := func(name string, data []byte, at, size int64) string {
		t.Helper()
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(data, at); err != nil {
			t.Fatal(err)
		}
		sum, err := sumAt(d, name)
		if err != nil {
			t.Fatal(err)
		}
		return string(sum)
	}
	dense := make([]byte, size)
	const at = copyBuffer + 5
	copy(dense[at:], "data")
	want := sum("dense", dense, 0, size)
	if got := sum("holes", []byte("data"), at, size); got != want {
		t.Error("holes are not zeros")
	}
	for name, got := range map[string]string{
		"elsewhere":     sum("elsewhere", []byte("data"), at+2*grain, size),
		"longer":        sum("longer", []byte("data"), at, size+1),
		"of other data": sum("other", []byte("date"), at, size),
	} {
		if got == want {
			t.Errorf("a file %s has the same sum", name)
		}
	}
}
