package sftp

import (
	"encoding/binary"
	"io"
	"math"
	"strings"
	"syscall"
	"time"

	"banger/vmm/guest"
)

// Kinds of packets.
const (
	kindInit     = 1
	kindVersion  = 2
	kindOpen     = 3
	kindClose    = 4
	kindRead     = 5
	kindWrite    = 6
	kindLstat    = 7
	kindSetstat  = 9
	kindOpendir  = 11
	kindReaddir  = 12
	kindRemove   = 13
	kindMkdir    = 14
	kindRmdir    = 15
	kindRename   = 18
	kindReadlink = 19
	kindSymlink  = 20
	kindStatus   = 101
	kindHandle   = 102
	kindData     = 103
	kindName     = 104
	kindAttrs    = 105
	kindExtended = 200
	kindReply    = 201
)

// Bits of what attributes there are.
const (
	hasSize     = 1
	hasOwner    = 2
	hasMode     = 4
	hasTimes    = 8
	hasExtended = 1 << 31
)

// Codes of a status.
const (
	statusOK         = 0
	statusEOF        = 1
	statusNoFile     = 2
	statusPermission = 3
	statusUnsupports = 8
)

// Attr is what is known of a file.
type Attr struct {
	Size     uint64 // at most math.MaxInt64
	UID, GID uint32
	Mode     uint32 // with the type, as in stat(2)
	guest.FileStat
}

// Change is what to change of a file; nil fields are left alone.
type Change struct {
	Size         *uint64
	UID, GID     *uint32
	Mode         *uint32
	Atime, Mtime int64 // nanoseconds after 1970, or guest.TimeOmit or guest.TimeNow
	Sync         bool  // fsync(2) it, last
}

// StatVFS is what is known of a file system; counts of blocks are in units of Frsize.
type StatVFS struct {
	Bsize, Frsize, Blocks, Bfree, Bavail, Files, Ffree, Favail, ID, Flag, Namemax uint64
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// unchanged changes nothing.
var unchanged = Change{Atime: guest.TimeOmit, Mtime: guest.TimeOmit}

// appendChange also appends extended attributes that say something by being there.
func appendChange(b []byte, c Change, words ...string) []byte {
	const nobody = math.MaxUint32 // leaves an owner as it is, as in chown(2)
	flags, a := uint32(0), []byte(nil)
	if c.Size != nil {
		flags |= hasSize
		a = binary.BigEndian.AppendUint64(a, *c.Size)
	}
	if c.UID != nil || c.GID != nil {
		flags |= hasOwner
		for _, id := range []*uint32{c.UID, c.GID} {
			n := uint32(nobody)
			if id != nil {
				n = *id
			}
			a = binary.BigEndian.AppendUint32(a, n)
		}
	}
	if c.Mode != nil {
		flags |= hasMode
		a = binary.BigEndian.AppendUint32(a, *c.Mode)
	}
	var more []byte
	count := uint32(0)
	if c.Atime != guest.TimeOmit || c.Mtime != guest.TimeOmit {
		more = appendString(appendString(more, guest.FilesTimes), string(guest.AppendFileInts(nil, c.Atime, c.Mtime)))
		count++
	}
	if c.Sync {
		words = append(words, guest.FilesSync)
	}
	for _, word := range words {
		more = appendString(appendString(more, word), "")
		count++
	}
	if count > 0 {
		flags |= hasExtended
		a = append(binary.BigEndian.AppendUint32(a, count), more...)
	}
	return append(binary.BigEndian.AppendUint32(b, flags), a...)
}

// decoder reads a packet. What is not there reads as zero and makes it bad.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) u32() uint32 {
	if p := d.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if p := d.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

func (d *decoder) bytes() []byte { return d.take(uint64(d.u32())) }

func (d *decoder) attr() Attr {
	var a Attr
	flags := d.u32()
	if flags&hasSize != 0 {
		a.Size = min(d.u64(), math.MaxInt64)
	}
	if flags&hasOwner != 0 {
		a.UID, a.GID = d.u32(), d.u32()
	}
	if flags&hasMode != 0 {
		a.Mode = d.u32() & (syscall.S_IFMT | 0o7777)
	}
	if flags&hasTimes != 0 {
		a.Atime, a.Mtime = time.Unix(int64(d.u32()), 0), time.Unix(int64(d.u32()), 0)
		a.Ctime = a.Mtime
	}
	a.Nlink, a.Blocks = 1, (a.Size+511)/512
	if flags&hasExtended != 0 {
		for n := d.u32(); n > 0 && !d.bad; n-- {
			key, value := string(d.bytes()), string(d.bytes())
			if key != guest.FilesStat {
				continue
			}
			if s, ok := guest.ParseFileStat(value); ok {
				a.FileStat = s
			}
		}
	}
	return a
}

// errnos are the failures that a server may report; others are EIO. ENOTCONN, ESTALE and EINTR are not among them: they would speak of
// the host's mount or the caller.
var errnos = []syscall.Errno{
	syscall.ENOENT, syscall.EACCES, syscall.EPERM, syscall.EEXIST, syscall.ENOTEMPTY, syscall.ENOTDIR, syscall.EISDIR, syscall.EINVAL, syscall.ENOSPC,
	syscall.EDQUOT, syscall.EROFS, syscall.EBUSY, syscall.EXDEV, syscall.ENAMETOOLONG, syscall.ELOOP, syscall.EMLINK, syscall.EFBIG, syscall.ETXTBSY,
	syscall.ENXIO, syscall.ENODEV, syscall.EAGAIN, syscall.EBADF, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE, syscall.EOPNOTSUPP, syscall.EOVERFLOW,
	syscall.ENODATA, syscall.ESRCH, syscall.ESPIPE, syscall.ENOLCK, syscall.EIO,
}

// statusError gives the error of a status: nil, io.EOF or one of errnos.
func statusError(d *decoder) error {
	code, text := d.u32(), string(d.bytes())
	switch code {
	case statusOK:
		return nil
	case statusEOF:
		return io.EOF
	}
	for _, e := range errnos {
		if strings.HasSuffix(text, e.Error()) {
			return e
		}
	}
	switch code {
	case statusNoFile:
		return syscall.ENOENT
	case statusPermission:
		return syscall.EACCES
	case statusUnsupports:
		return syscall.EOPNOTSUPP
	}
	return syscall.EIO
}
