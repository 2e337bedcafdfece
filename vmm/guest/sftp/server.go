package sftp

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"os"
	"slices"
	"sync"

	"banger/vmm/guest"

	"golang.org/x/sys/unix"
)

const (
	namesAtOnce = 256                 // in one answer to READDIR
	unsentMost  = MaxData + MaxData/2 // bytes of answers that wait while more requests are answered
)

// Handler serves the files below root on [Stream].
func Handler(root string) guest.StreamHandler {
	return func(json.RawMessage) (func(net.Conn), error) {
		return func(conn net.Conn) {
			defer conn.Close()
			fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return // the host sees the stream's end
			}
			defer unix.Close(fd)
			s := &server{
				root: tree(fd), conn: conn, requests: bufio.NewReaderSize(conn, 64<<10),
				files: make(map[uint32]int), dirs: make(map[uint32]*os.File),
			}
			s.serve()
		}, nil
	}
}

// server is a session. It answers requests in their order, and sends the answers together once no
// other request waits: in an emulated guest, waking goroutines and the host takes longer than the
// work. Only fsync has a goroutine of its own.
type server struct {
	root     tree
	conn     net.Conn
	requests *bufio.Reader
	files    map[uint32]int      // descriptors by handle
	dirs     map[uint32]*os.File // the same of directories
	last     uint32              // handle
	syncs    sync.WaitGroup

	mu      sync.Mutex // guards answers, and is held while they are sent
	answers []byte
}

// serve returns when the stream has ended or a packet is malformed.
func (s *server) serve() {
	defer func() {
		s.conn.Close() // frees a goroutine that sends
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
		if s.requests.Buffered() == 0 && s.send(0) != nil {
			return
		}
		var head [4]byte
		if _, err := io.ReadFull(s.requests, head[:]); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(head[:])
		if n < 5 || n > maxRequest {
			return
		}
		if uint32(cap(packet)) < n {
			packet = make([]byte, n)
		}
		packet = packet[:n]
		// The rest of a packet may be long in coming.
		if uint32(s.requests.Buffered()) < n && s.send(0) != nil {
			return
		}
		if _, err := io.ReadFull(s.requests, packet); err != nil {
			return
		}
		if s.answer(packet[0], &decoder{b: packet[1:]}) != nil || s.send(unsentMost) != nil {
			return
		}
	}
}

// send sends the answers if they have more than that many bytes.
func (s *server) send(over int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.answers) <= over {
		return nil
	}
	_, err := s.conn.Write(s.answers)
	s.answers = s.answers[:0]
	return err
}

// answer handles a packet and adds the answer to those to be sent. Its error ends the session.
func (s *server) answer(kind byte, d *decoder) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if kind == kindInit {
		s.answers = append(s.answers, greeting(kindVersion)...)
		return nil
	}
	id := d.u32()
	reply, body, err := s.perform(kind, id, d, beginPacket(s.answers, id))
	if d.bad {
		return ErrProtocol
	}
	if reply != kindNone {
		s.addLocked(id, reply, body, err)
	}
	return nil
}

// addLocked adds an answer that beginPacket has begun, or in its place the status of an error.
func (s *server) addLocked(id uint32, reply byte, b []byte, err error) {
	if err != nil || reply == kindStatus {
		reply, b = kindStatus, appendStatus(beginPacket(s.answers, id), err)
	}
	endPacket(b, len(s.answers), reply)
	s.answers = b
}

// perform handles a packet and appends the body of the answer to b. It returns the answer's kind,
// kindNone if the answer follows later.
func (s *server) perform(kind byte, id uint32, d *decoder, b []byte) (byte, []byte, error) {
	switch kind {
	case kindOpen:
		return s.open(d, b)
	case kindOpendir:
		dir, err := s.root.opendir(d.text())
		if err == nil {
			s.last++
			s.dirs[s.last] = dir
			b = appendHandle(b, s.last)
		}
		return kindHandle, b, err
	case kindClose:
		return kindStatus, b, s.closeHandle(d.handle())
	case kindRead:
		return s.read(d, b)
	case kindWrite:
		fd, ok := s.files[d.handle()]
		off, data := d.u64(), d.bytes()
		if !ok {
			return kindStatus, b, unix.EBADF
		}
		return kindStatus, b, pwrite(fd, data, int64(off))
	case kindReaddir:
		return s.readdir(d, b)
	case kindStat, kindLstat: // the host wants no link followed by either
		a, err := s.root.stat(d.text())
		return kindAttrs, appendAttr(b, &a), err
	case kindReadlink:
		target, err := s.root.readlink(d.text())
		const count, longName, noAttrs = 1, "", 0
		b = appendString(appendString(binary.BigEndian.AppendUint32(b, count), target), longName)
		return kindName, binary.BigEndian.AppendUint32(b, noAttrs), err
	case kindSetstat:
		return s.setstat(id, d, b)
	case kindExtended:
		return s.extended(d, b)
	}
	return kindStatus, b, s.link(kind, d)
}

// link handles packets that add, remove or rename a name.
func (s *server) link(kind byte, d *decoder) error {
	name := d.text()
	switch kind {
	case kindRemove:
		return s.root.unlink(name, 0)
	case kindRmdir:
		return s.root.unlink(name, unix.AT_REMOVEDIR)
	case kindMkdir:
		d.change() // the host sets attributes afterwards
		return s.root.with(name, func(dir int, base string) error {
			return unix.Mkdirat(dir, base, 0o755)
		})
	case kindSymlink: // in OpenSSH's order, not the draft's: the target comes first
		return s.root.with(d.text(), func(dir int, base string) error {
			return unix.Symlinkat(name, dir, base)
		})
	case kindRename:
		return s.root.rename(name, d.text(), unix.RENAME_NOREPLACE)
	}
	d.bad = false // the fields of an unknown packet are unknown
	return unix.EOPNOTSUPP
}

func appendHandle(b []byte, h uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, 4), h)
}

// handle undoes appendHandle. It returns 0, which is no handle, for other bytes.
func (d *decoder) handle() uint32 {
	if b := d.bytes(); len(b) == 4 {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// openBits are the flags of open(2) for those of OPEN.
var openBits = []struct{ asked, flag uint32 }{
	{Append, unix.O_APPEND}, {Create, unix.O_CREAT},
	{Truncate, unix.O_TRUNC}, {Exclusive, unix.O_EXCL},
}

func (s *server) open(d *decoder, b []byte) (byte, []byte, error) {
	name, asked := d.text(), d.u32()
	change, wantAttrs := d.change()
	access := [4]int{Write: unix.O_WRONLY, Read | Write: unix.O_RDWR}
	flags := access[asked&(Read|Write)] // else O_RDONLY
	for _, x := range openBits {
		if asked&x.asked != 0 {
			flags |= int(x.flag)
		}
	}
	mode := uint32(0o644)
	if change.Mode != nil {
		mode = *change.Mode & 0o7777
	}
	fd, parent, err := s.root.open(name, flags, mode)
	if err != nil {
		return kindHandle, b, err
	}
	var file Attr
	if wantAttrs {
		file, err = fstat(fd)
	}
	if err != nil || d.bad {
		unix.Close(fd)
		return kindHandle, b, err
	}
	s.last++
	s.files[s.last] = fd
	b = appendHandle(b, s.last)
	if wantAttrs {
		b = appendAttr(appendAttr(b, &file), &parent)
	}
	return kindHandle, b, nil
}

func (s *server) closeHandle(h uint32) error {
	if fd, ok := s.files[h]; ok {
		delete(s.files, h)
		return unix.Close(fd)
	}
	if dir, ok := s.dirs[h]; ok {
		delete(s.dirs, h)
		return dir.Close()
	}
	return unix.EBADF
}

func (s *server) read(d *decoder, b []byte) (byte, []byte, error) {
	fd, ok := s.files[d.handle()]
	off, n := d.u64(), int(min(d.u32(), MaxData))
	if !ok {
		return kindData, b, unix.EBADF
	}
	start := len(b)
	b = slices.Grow(b, 4+n)[:start+4+n]
	n, err := pread(fd, b[start+4:], int64(off))
	if n == 0 && err == nil {
		err = io.EOF
	}
	binary.BigEndian.PutUint32(b[start:], uint32(n))
	return kindData, b[:start+4+n], err
}

func (s *server) readdir(d *decoder, b []byte) (byte, []byte, error) {
	dir := s.dirs[d.handle()]
	if dir == nil {
		return kindName, b, unix.EBADF
	}
	names, err := readNames(dir, namesAtOnce)
	if len(names) > 0 {
		err = nil // the next READDIR reports it
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(names)))
	for i := range names {
		b = appendName(b, names[i].Name, &names[i].Attr)
	}
	return kindName, b, err
}

func (s *server) setstat(id uint32, d *decoder, b []byte) (byte, []byte, error) {
	name := d.text()
	change, wantAttrs := d.change()
	var now Attr
	set := func() error {
		return s.root.with(name, func(dir int, base string) (err error) {
			if err = setstat(dir, base, &change); err == nil && wantAttrs {
				now, err = lstat(dir, base)
			}
			return err
		})
	}
	reply := byte(kindStatus)
	if wantAttrs {
		reply = kindAttrs
	}
	if d.bad {
		return kindNone, b, nil
	}
	if !change.Sync {
		err := set()
		return reply, appendAttr(b, &now), err
	}
	s.syncs.Go(func() { // ends when the disk has it
		err := set()
		s.mu.Lock()
		s.addLocked(id, reply, appendAttr(beginPacket(s.answers, id), &now), err)
		s.mu.Unlock()
		_ = s.send(0) // serve notices a broken stream too
	})
	return kindNone, b, nil
}

// seek finds data or a hole. It moves only an offset of the descriptor that nothing else uses.
func (s *server) seek(d *decoder, b []byte) (byte, []byte, error) {
	fd, ok := s.files[d.handle()]
	off, whence := int64(d.u64()), int(d.u32())
	switch {
	case !ok:
		return kindReply, b, unix.EBADF
	case whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE:
		return kindReply, b, unix.EINVAL
	}
	at, err := unix.Seek(fd, off, whence)
	return kindReply, binary.BigEndian.AppendUint64(b, uint64(at)), err
}

// extended serves the extensions of OpenSSH that the host uses, and banger's own.
func (s *server) extended(d *decoder, b []byte) (byte, []byte, error) {
	switch d.text() {
	case posixRename:
		return kindStatus, b, s.root.rename(d.text(), d.text(), 0)
	case hardLink:
		return kindStatus, b, s.root.link(d.text(), d.text())
	case statVFS:
		st, err := s.root.statfs(d.text())
		for _, n := range st.fields() {
			b = binary.BigEndian.AppendUint64(b, *n)
		}
		return kindReply, b, err
	case seekFile:
		return s.seek(d, b)
	}
	return kindStatus, b, unix.EOPNOTSUPP
}
