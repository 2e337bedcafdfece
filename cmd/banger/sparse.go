package main

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/host"
)

// grain is the step between two questions for data, in bytes. A guest that answers with smaller
// pieces costs no more requests than a file without holes.
const grain = 64 << 10

// isSparse reports whether a file may have holes worth a question, as cp(1) does. A file system
// that compresses costs the question only.
func isSparse(st *unix.Stat_t) bool {
	return st.Size > grain && st.Blocks < st.Size/512
}

// dataParts calls f with each part of a file that is not known to be a hole, in order. Parts begin
// and end at multiples of grain, the last one at size. seek is lseek(2), whose answers for a guest
// are the guest's: any answer leads on by a grain. If seek fails, the rest is data.
func dataParts(size int64, seek func(off int64, whence int) (int64, error),
	f func(at, end int64) error) error {
	for at := int64(0); at < size; {
		begin, err := seek(at, unix.SEEK_DATA)
		if err == unix.ENXIO || err == nil && begin >= size {
			return nil
		}
		end := size
		if err != nil {
			begin = at
		} else if hole, err := seek(begin, unix.SEEK_HOLE); err == nil {
			end = hole
		}
		begin = max(at, begin-begin%grain)
		if end = min(end, size); end <= begin {
			end = begin + 1
		}
		if over := end % grain; over > 0 {
			end += min(grain-over, size-end)
		}
		if err := f(begin, end); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// partsOf is dataParts of an open file.
func partsOf(in *os.File, size int64, f func(at, end int64) error) error {
	return dataParts(size, func(off int64, whence int) (int64, error) {
		return retry(func() (int64, error) { return unix.Seek(int(in.Fd()), off, whence) })
	}, f)
}

// copySparse copies in up to its size of now, and leaves the holes. out is empty.
func (c *copier) copySparse(in, out *os.File) error {
	st, err := regularStat(in)
	if err != nil {
		return err
	}
	err = partsOf(in, st.Size, func(at, end int64) error {
		part := io.NewSectionReader(in, at, end-at)
		return c.copyData(part, &host.HoleWriter{File: out, At: at}, end-at)
	})
	if err != nil {
		return err
	}
	return out.Truncate(st.Size)
}

// sumAt returns a digest of a file's content: of the grains that are not zeros, each with its
// offset, and of the size. Holes are not read.
func sumAt(dir *os.File, name string) ([]byte, error) {
	f, err := openFileAt(dir, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := regularStat(f)
	if err != nil {
		return nil, err
	}
	h, size := sha256.New(), st.Size
	if isSparse(&st) {
		err = partsOf(f, size, func(at, end int64) error {
			_, err := sumPart(h, io.NewSectionReader(f, at, end-at), at)
			return err
		})
	} else {
		size, err = sumPart(h, f, 0)
	}
	return h.Sum(binary.BigEndian.AppendUint64(nil, uint64(size))), err
}

// sumPart adds what in has from offset at on. It returns the offset of the end.
func sumPart(h io.Writer, in io.Reader, at int64) (int64, error) {
	buf := make([]byte, copyBuffer)
	for {
		n, err := io.ReadFull(in, buf)
		for b := buf[:n]; len(b) > 0; {
			block := b[:min(len(b), grain)]
			if !host.Zeros(block) {
				h.Write(binary.BigEndian.AppendUint64(nil, uint64(at)))
				h.Write(block)
			}
			at += int64(len(block))
			b = b[len(block):]
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return at, nil
		}
		if err != nil {
			return at, err
		}
	}
}
