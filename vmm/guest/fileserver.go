package guest

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Kinds of packets, bits of attributes, flags of SSH_FXP_OPEN and codes of a status (draft-ietf-secsh-filexfer-02, sections 3, 5, 6.3 and 7).
const (
	fxpNone     = 0 // none of the protocol's
	fxpInit     = 1
	fxpVersion  = 2
	fxpOpen     = 3
	fxpClose    = 4
	fxpRead     = 5
	fxpWrite    = 6
	fxpLstat    = 7
	fxpSetstat  = 9
	fxpOpendir  = 11
	fxpReaddir  = 12
	fxpRemove   = 13
	fxpMkdir    = 14
	fxpRmdir    = 15
	fxpStat     = 17
	fxpRename   = 18
	fxpReadlink = 19
	fxpSymlink  = 20
	fxpStatus   = 101
	fxpHandle   = 102
	fxpData     = 103
	fxpName     = 104
	fxpAttrs    = 105
	fxpExtended = 200
	fxpReply    = 201

	attrSize     = 1
	attrOwner    = 2
	attrMode     = 4
	attrTimes    = 8
	attrExtended = 1 << 31

	fxOK         = 0
	fxEOF        = 1
	fxNoFile     = 2
	fxPermission = 3
	fxFailure    = 4
	fxUnsupports = 8
)

const (
	maxData   = 128 << 10           // bytes of one read: what the host asks for at once
	maxNames  = 256                 // of one answer to SSH_FXP_READDIR
	maxAsked  = maxData + 64<<10    // bytes of a request
	maxUnsent = maxData + maxData/2 // bytes of answers that wait for the next request to be answered too
)

// Files serves what is below root, as [FilesStream] says.
func Files(root string) StreamHandler {
	return func(json.RawMessage) (func(net.Conn), error) {
		return func(conn net.Conn) {
			defer conn.Close()
			fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return // the host sees the stream's end
			}
			defer unix.Close(fd)
			s := &fileServer{root: files(fd), conn: conn, in: bufio.NewReaderSize(conn, 64<<10), files: make(map[uint32]int), dirs: make(map[uint32]*os.File)}
			s.serve()
		}, nil
	}
}

// fileServer is a session. It answers one request after the other, in their order, and sends the answers together when no other request
// has come: in an emulated guest waking goroutines, and the host, takes longer than what is asked for. Only a disk's sync is not waited for.
type fileServer struct {
	root  files
	conn  net.Conn
	in    *bufio.Reader
	files map[uint32]int      // descriptors by handle
	dirs  map[uint32]*os.File // the same of directories
	last  uint32              // handle
	syncs sync.WaitGroup

	mu  sync.Mutex // guards out, and is held while it is sent
	out []byte
}

var errPacket = errors.New("a packet of the file transfer is malformed")

// serve returns when the stream has ended or does not keep to the protocol.
func (s *fileServer) serve() {
	defer func() {
		s.conn.Close() // frees who sends
		s.syncs.Wait()
		for _, fd := range s.files {
			unix.Close(fd)
		}
		for _, d := range s.dirs {
			d.Close()
		}
	}()
	var packet []byte
	for {
		if s.in.Buffered() == 0 && s.send(0) != nil {
			return
		}
		var head [4]byte
		if _, err := io.ReadFull(s.in, head[:]); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(head[:])
		if n < 5 || n > maxAsked {
			return
		}
		if uint32(cap(packet)) < n {
			packet = make([]byte, n)
		}
		packet = packet[:n]
		// What is not here yet may be long in coming.
		if uint32(s.in.Buffered()) < n && s.send(0) != nil {
			return
		}
		if _, err := io.ReadFull(s.in, packet); err != nil {
			return
		}
		if s.answer(packet[0], &fields{b: packet[1:]}) != nil || s.send(maxUnsent) != nil {
			return
		}
	}
}

// send sends the answers if they are longer than that.
func (s *fileServer) send(over int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.out) <= over {
		return nil
	}
	_, err := s.conn.Write(s.out)
	s.out = s.out[:0]
	return err
}

// answer does what a packet asks for and adds the answer to those to be sent. Its error ends the session.
func (s *fileServer) answer(kind byte, f *fields) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if kind == fxpInit {
		s.out = append(s.out, 0, 0, 0, 5, fxpVersion, 0, 0, 0, 3)
		return nil
	}
	id := f.u32()
	reply, body, err := s.perform(kind, id, f, s.begin(id))
	if f.bad {
		return errPacket
	}
	if reply != fxpNone {
		s.endLocked(id, reply, body, err)
	}
	return nil
}

// begin gives the answers with the head of another.
func (s *fileServer) begin(id uint32) []byte {
	return binary.BigEndian.AppendUint32(append(s.out, 0, 0, 0, 0, 0), id)
}

// endLocked adds an answer, begun with begin; of an error, a status that says it.
func (s *fileServer) endLocked(id uint32, reply byte, b []byte, err error) {
	if err != nil || reply == fxpStatus {
		reply, b = fxpStatus, appendStatus(s.begin(id), err)
	}
	at := len(s.out)
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	b[at+4] = reply
	s.out = b
}

// appendStatus says what an error is; the host reads the errno from the text.
func appendStatus(b []byte, err error) []byte {
	code, text := uint32(fxFailure), ""
	switch {
	case err == nil:
		code = fxOK
	case err == io.EOF:
		code = fxEOF
	case errors.Is(err, unix.ENOENT):
		code = fxNoFile
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		code = fxPermission
	case errors.Is(err, unix.EOPNOTSUPP):
		code = fxUnsupports
	}
	if err != nil {
		text = err.Error()
	}
	return appendText(appendText(binary.BigEndian.AppendUint32(b, code), text), "")
}

func appendText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// appendAttrs says what a file is.
func appendAttrs(b []byte, st *unix.Stat_t) []byte {
	b = binary.BigEndian.AppendUint32(b, attrSize|attrOwner|attrMode|attrTimes|attrExtended)
	b = binary.BigEndian.AppendUint64(b, uint64(st.Size))
	for _, n := range []uint32{st.Uid, st.Gid, st.Mode, uint32(st.Atim.Sec), uint32(st.Mtim.Sec), 1} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	b = appendText(b, FilesStat)
	at := len(b)
	b = FileStat{
		Nlink: uint64(st.Nlink), Blocks: uint64(st.Blocks), Rdev: st.Rdev,
		Atime: time.Unix(st.Atim.Unix()), Mtime: time.Unix(st.Mtim.Unix()), Ctime: time.Unix(st.Ctim.Unix()),
	}.Append(append(b, 0, 0, 0, 0))
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}

// fields reads a packet. What is not there reads as zero and makes it bad.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n uint64) []byte {
	if n > uint64(len(f.b)) {
		f.b, f.bad = nil, true
		return nil
	}
	p := f.b[:n]
	f.b = f.b[n:]
	return p
}

func (f *fields) u32() uint32 {
	if p := f.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (f *fields) u64() uint64 {
	if p := f.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

func (f *fields) bytes() []byte { return f.take(uint64(f.u32())) }
func (f *fields) text() string  { return string(f.bytes()) }

// handle gives that of an open file or directory.
func (f *fields) handle() uint32 {
	if b := f.bytes(); len(b) == 4 {
		return binary.BigEndian.Uint32(b)
	}
	return 0 // which is nobody's
}

// attrs reads what to change of a file.
func (f *fields) attrs() *change {
	c := new(change)
	flags := f.u32()
	if flags&attrSize != 0 {
		n := f.u64()
		c.size = &n
	}
	if flags&attrOwner != 0 {
		c.uid, c.gid, c.chown = f.u32(), f.u32(), true
	}
	if flags&attrMode != 0 {
		n := f.u32()
		c.mode = &n
	}
	if flags&attrTimes != 0 {
		c.times = []int64{int64(f.u32()) * 1e9, int64(f.u32()) * 1e9}
	}
	if flags&attrExtended != 0 {
		for n := f.u32(); n > 0 && !f.bad; n-- {
			switch key, value := f.text(), f.text(); key {
			case FilesTimes:
				var times [2]int64
				if ParseFileInts(value, times[:]) {
					c.times = times[:]
				}
			case FilesSync:
				c.sync = true
			case FilesAttrs:
				c.tell = true
			}
		}
	}
	return c
}

// perform does what a packet asks for and appends the body of the answer, whose kind it gives: fxpNone if that comes later.
func (s *fileServer) perform(kind byte, id uint32, f *fields, b []byte) (reply byte, _ []byte, err error) {
	switch kind {
	case fxpOpen:
		return s.openFile(f, b)
	case fxpOpendir:
		d, err := s.root.opendir(f.text())
		if err == nil {
			s.last++
			s.dirs[s.last] = d
			b = appendHandle(b, s.last)
		}
		return fxpHandle, b, err
	case fxpClose:
		h := f.handle()
		if fd, ok := s.files[h]; ok {
			delete(s.files, h)
			return fxpStatus, b, unix.Close(fd)
		}
		if d, ok := s.dirs[h]; ok {
			delete(s.dirs, h)
			return fxpStatus, b, d.Close()
		}
		return fxpStatus, b, unix.EBADF
	case fxpRead:
		return s.read(f, b)
	case fxpWrite:
		fd, ok := s.files[f.handle()]
		off, data := f.u64(), f.bytes()
		if !ok {
			return fxpStatus, b, unix.EBADF
		}
		return fxpStatus, b, pwrite(fd, data, int64(off))
	case fxpReaddir:
		return s.readdir(f, b)
	case fxpStat, fxpLstat: // that neither follows a link is what the host wants
		st, err := s.root.stat(f.text())
		return fxpAttrs, appendAttrs(b, &st), err
	case fxpReadlink:
		target, err := s.root.readlink(f.text())
		return fxpName, append(appendText(appendText(binary.BigEndian.AppendUint32(b, 1), target), target), 0, 0, 0, 0), err
	case fxpExtended:
		return s.extended(f, b)
	}
	name := f.text()
	switch kind {
	case fxpSetstat:
		return s.setstat(id, name, f.attrs(), b)
	case fxpRemove, fxpRmdir:
		flags := map[byte]int{fxpRemove: 0, fxpRmdir: unix.AT_REMOVEDIR}[kind]
		err = s.root.with(name, func(dir int, base string) error { return unix.Unlinkat(dir, base, flags) })
	case fxpMkdir:
		f.attrs() // the host sets them afterwards
		err = s.root.with(name, func(dir int, base string) error { return unix.Mkdirat(dir, base, 0o755) })
	case fxpSymlink: // in the order of OpenSSH, not of the draft: what it says comes first
		err = s.root.with(f.text(), func(dir int, base string) error { return unix.Symlinkat(name, dir, base) })
	case fxpRename:
		err = s.root.rename(name, f.text(), unix.RENAME_NOREPLACE)
	default:
		f.bad, err = false, unix.EOPNOTSUPP // what fields it has is not known
	}
	return fxpStatus, b, err
}

func appendHandle(b []byte, h uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, 4), h)
}

// openFlags are those of open(2) for the flags of SSH_FXP_OPEN, of which 1 is to read and 2 to write.
var openFlags = []struct{ bit, flag uint32 }{{4, unix.O_APPEND}, {8, unix.O_CREAT}, {16, unix.O_TRUNC}, {32, unix.O_EXCL}}

func (s *fileServer) openFile(f *fields, b []byte) (byte, []byte, error) {
	name, asked, attrs := f.text(), f.u32(), f.attrs()
	flags := [4]int{unix.O_RDONLY, unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR}[asked&3]
	for _, x := range openFlags {
		if asked&x.bit != 0 {
			flags |= int(x.flag)
		}
	}
	mode := uint32(0o644)
	if attrs.mode != nil {
		mode = *attrs.mode & 0o7777
	}
	fd, in, err := s.root.open(name, flags, mode)
	if err != nil {
		return fxpHandle, b, err
	}
	var st unix.Stat_t
	if attrs.tell {
		err = unix.Fstat(fd, &st)
	}
	if err != nil || f.bad {
		unix.Close(fd)
		return fxpHandle, b, err
	}
	s.last++
	s.files[s.last] = fd
	b = appendHandle(b, s.last)
	if attrs.tell {
		b = appendAttrs(appendAttrs(b, &st), &in)
	}
	return fxpHandle, b, nil
}

func (s *fileServer) read(f *fields, b []byte) (byte, []byte, error) {
	fd, ok := s.files[f.handle()]
	off, n := f.u64(), int(min(f.u32(), maxData))
	if !ok {
		return fxpData, b, unix.EBADF
	}
	at := len(b)
	b = slices.Grow(b, 4+n)[:at+4+n]
	n, err := pread(fd, b[at+4:], int64(off))
	if n == 0 && err == nil {
		err = io.EOF
	}
	binary.BigEndian.PutUint32(b[at:], uint32(n))
	return fxpData, b[:at+4+n], err
}

func (s *fileServer) readdir(f *fields, b []byte) (byte, []byte, error) {
	d := s.dirs[f.handle()]
	if d == nil {
		return fxpName, b, unix.EBADF
	}
	names, err := next(d, maxNames)
	if len(names) > 0 {
		err = nil // the next says it
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(names)))
	for i := range names {
		b = appendText(appendText(b, names[i].name), "") // as ls -l would show it: the host does not look
		b = appendAttrs(b, &names[i].st)
	}
	return fxpName, b, err
}

func (s *fileServer) setstat(id uint32, name string, c *change, b []byte) (byte, []byte, error) {
	var st unix.Stat_t
	set := func() error {
		return s.root.with(name, func(dir int, base string) (err error) {
			if err = setstat(dir, base, c); err == nil && c.tell {
				st, err = lstat(dir, base)
			}
			return err
		})
	}
	reply := byte(fxpStatus)
	if c.tell {
		reply = fxpAttrs
	}
	if !c.sync {
		err := set()
		return reply, appendAttrs(b, &st), err
	}
	s.syncs.Add(1)
	go func() { // ends when the disk has it
		defer s.syncs.Done()
		err := set()
		s.mu.Lock()
		s.endLocked(id, reply, appendAttrs(s.begin(id), &st), err)
		s.mu.Unlock()
		_ = s.send(0) // who reads notices the end too
	}()
	return fxpNone, b, nil
}

// extended serves the extensions of OpenSSH (PROTOCOL, section 4) that the host uses.
func (s *fileServer) extended(f *fields, b []byte) (byte, []byte, error) {
	switch f.text() {
	case "posix-rename@openssh.com":
		return fxpStatus, b, s.root.rename(f.text(), f.text(), 0)
	case "hardlink@openssh.com":
		return fxpStatus, b, s.root.link(f.text(), f.text())
	case "statvfs@openssh.com":
		st, err := s.root.statfs(f.text())
		for _, n := range []uint64{uint64(st.Bsize), uint64(st.Frsize), st.Blocks, st.Bfree, st.Bavail, st.Files, st.Ffree, st.Ffree, 0, 0, uint64(st.Namelen)} {
			b = binary.BigEndian.AppendUint64(b, n)
		}
		return fxpReply, b, err
	}
	return fxpStatus, b, unix.EOPNOTSUPP
}
