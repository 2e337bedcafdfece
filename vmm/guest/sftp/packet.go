package sftp

import (
	"encoding/binary"
	"math"
	"syscall"
	"time"
)

// Kinds of packets (sections 3, 6 and 7 of the draft).
const (
	kindNone     = 0 // none of the protocol's
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
	kindStat     = 17
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

// Bits that say which attributes follow (section 5).
const (
	hasSize     = 1
	hasOwner    = 2
	hasMode     = 4
	hasTimes    = 8
	hasExtended = 1 << 31
)

// Flags of Open (section 6.3).
const (
	Read      = 1
	Write     = 2
	Append    = 4
	Create    = 8
	Truncate  = 16
	Exclusive = 32
)

// Extended requests, of OpenSSH (its PROTOCOL, section 4).
const (
	posixRename = "posix-rename@openssh.com"
	hardLink    = "hardlink@openssh.com"
	statVFS     = "statvfs@openssh.com"
)

// seekFile is an extended request, of banger: a handle, an offset, and SEEK_DATA or SEEK_HOLE of
// lseek(2). The reply is the offset found.
const seekFile = "seek@banger"

// Extended attributes, of banger.
const (
	// extStat is an answer's FileStat.
	extStat = "stat@banger"
	// extTimes, in SETSTAT, has two times of Change, of access and of modification.
	extTimes = "times@banger"
	// extSync, in SETSTAT, is empty and asks for fsync(2).
	extSync = "sync@banger"
	// extAttrs, in OPEN and SETSTAT, is empty and asks for attributes. Those of the file and of its
	// directory then follow a handle, and ATTRS answers a SETSTAT in place of a status. A server
	// that does not know it answers by the protocol.
	extAttrs = "attrs@banger"
)

const (
	// MaxData is how many bytes one packet carries at most.
	MaxData = 128 << 10

	protocolVersion = 3
	maxAnswer       = MaxData + 128<<10 // bytes
	maxRequest      = MaxData + 64<<10  // bytes
)

// Times that Change has in place of nanoseconds after 1970: UTIME_OMIT and UTIME_NOW of
// utimensat(2).
const (
	TimeOmit = -1 << 63
	TimeNow  = 1<<63 - 1
)

// FileStat holds fields without an attribute in version 3 of the protocol.
type FileStat struct {
	Nlink, Blocks, Rdev uint64
	Atime, Mtime, Ctime time.Time
}

// Attr describes a file.
type Attr struct {
	Size     uint64 // at most math.MaxInt64
	UID, GID uint32
	Mode     uint32 // with the type, as in stat(2)
	FileStat
}

// Change is a change of a file's attributes. Nil fields stay as they are.
type Change struct {
	Size         *uint64
	UID, GID     *uint32
	Mode         *uint32
	Atime, Mtime int64 // nanoseconds after 1970, TimeOmit or TimeNow
	Sync         bool  // fsync(2) it, last
}

// unchanged changes nothing.
var unchanged = Change{Atime: TimeOmit, Mtime: TimeOmit}

// nobody leaves an owner as it is, as -1 does in chown(2).
const nobody = math.MaxUint32

// Name is a name in a directory.
type Name struct {
	Name string
	Attr Attr
}

// StatVFS describes a file system. Blocks are counted in units of Frsize.
type StatVFS struct {
	Bsize, Frsize, Blocks, Bfree, Bavail, Files, Ffree, Favail, ID, Flag, Namemax uint64
}

// fields are in the order of the protocol.
func (s *StatVFS) fields() [11]*uint64 {
	return [...]*uint64{
		&s.Bsize, &s.Frsize, &s.Blocks, &s.Bfree, &s.Bavail, &s.Files,
		&s.Ffree, &s.Favail, &s.ID, &s.Flag, &s.Namemax,
	}
}

// beginPacket appends the head of a packet, whose length and kind endPacket fills in.
func beginPacket(b []byte, id uint32) []byte {
	return binary.BigEndian.AppendUint32(append(b, 0, 0, 0, 0, kindNone), id)
}

// endPacket completes the packet that begins at b[start] and ends with b.
func endPacket(b []byte, start int, kind byte) {
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start-4))
	b[start+4] = kind
}

// greeting is each side's first packet, with its version.
func greeting(kind byte) []byte { return []byte{0, 0, 0, 5, kind, 0, 0, 0, protocolVersion} }

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

func appendInts(b []byte, ints ...int64) []byte {
	for _, n := range ints {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return b
}

// parseInts fills ints, and returns false for a text of another length.
func parseInts(text []byte, ints []int64) bool {
	if len(text) != 8*len(ints) {
		return false
	}
	for i := range ints {
		ints[i] = int64(binary.BigEndian.Uint64(text[8*i:]))
	}
	return true
}

func appendAttr(b []byte, a *Attr) []byte {
	b = binary.BigEndian.AppendUint32(b, hasSize|hasOwner|hasMode|hasTimes|hasExtended)
	b = binary.BigEndian.AppendUint64(b, a.Size)
	const extensions = 1
	for _, n := range [...]uint32{
		a.UID, a.GID, a.Mode, uint32(a.Atime.Unix()), uint32(a.Mtime.Unix()), extensions,
	} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	b = binary.BigEndian.AppendUint32(appendString(b, extStat), 6*8)
	return appendInts(b, int64(a.Nlink), int64(a.Blocks), int64(a.Rdev),
		a.Atime.UnixNano(), a.Mtime.UnixNano(), a.Ctime.UnixNano())
}

// appendName appends a row of an answer to READDIR or READLINK. What `ls -l` would show is left
// empty: nobody reads it.
func appendName(b []byte, name string, a *Attr) []byte {
	return appendAttr(appendString(appendString(b, name), ""), a)
}

// appendChange also appends the extended attributes of words, which are empty.
func appendChange(b []byte, c Change, words ...string) []byte {
	flags, attrs := uint32(0), []byte(nil)
	if c.Size != nil {
		flags |= hasSize
		attrs = binary.BigEndian.AppendUint64(attrs, *c.Size)
	}
	if c.UID != nil || c.GID != nil {
		flags |= hasOwner
		for _, id := range []*uint32{c.UID, c.GID} {
			n := uint32(nobody)
			if id != nil {
				n = *id
			}
			attrs = binary.BigEndian.AppendUint32(attrs, n)
		}
	}
	if c.Mode != nil {
		flags |= hasMode
		attrs = binary.BigEndian.AppendUint32(attrs, *c.Mode)
	}
	var extended []byte
	count := uint32(0)
	if c.Atime != TimeOmit || c.Mtime != TimeOmit {
		times := appendInts(nil, c.Atime, c.Mtime)
		extended = appendString(appendString(extended, extTimes), string(times))
		count++
	}
	if c.Sync {
		words = append(words, extSync)
	}
	for _, word := range words {
		extended = appendString(appendString(extended, word), "")
		count++
	}
	if count > 0 {
		flags |= hasExtended
		attrs = append(binary.BigEndian.AppendUint32(attrs, count), extended...)
	}
	return append(binary.BigEndian.AppendUint32(b, flags), attrs...)
}

// decoder reads a packet. Missing fields read as zero and make it bad.
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
func (d *decoder) text() string  { return string(d.bytes()) }

// extended calls f for each extended attribute.
func (d *decoder) extended(f func(key string, value []byte)) {
	for n := d.u32(); n > 0 && !d.bad; n-- {
		key, value := d.text(), d.bytes()
		f(key, value)
	}
}

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
		d.extended(func(key string, value []byte) {
			var n [6]int64
			if key == extStat && parseInts(value, n[:]) {
				a.FileStat = FileStat{
					uint64(n[0]), uint64(n[1]), uint64(n[2]),
					time.Unix(0, n[3]), time.Unix(0, n[4]), time.Unix(0, n[5]),
				}
			}
		})
	}
	return a
}

// change undoes appendChange. It reports whether extAttrs was there.
func (d *decoder) change() (c Change, wantAttrs bool) {
	c = unchanged
	u32 := func() *uint32 { n := d.u32(); return &n }
	flags := d.u32()
	if flags&hasSize != 0 {
		n := d.u64()
		c.Size = &n
	}
	if flags&hasOwner != 0 {
		c.UID, c.GID = u32(), u32()
	}
	if flags&hasMode != 0 {
		c.Mode = u32()
	}
	if flags&hasTimes != 0 {
		c.Atime, c.Mtime = int64(d.u32())*1e9, int64(d.u32())*1e9
	}
	if flags&hasExtended == 0 {
		return c, false
	}
	d.extended(func(key string, value []byte) {
		var times [2]int64
		switch {
		case key == extTimes && parseInts(value, times[:]):
			c.Atime, c.Mtime = times[0], times[1]
		case key == extSync:
			c.Sync = true
		case key == extAttrs:
			wantAttrs = true
		}
	})
	return c, wantAttrs
}
