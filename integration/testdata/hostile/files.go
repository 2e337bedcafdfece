package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// The numbers of the SSH file transfer protocol that serve the files
// (draft-ietf-secsh-filexfer-02). A string is its length and its bytes.
const (
	fxpOpen, fxpClose, fxpRead, fxpWrite, fxpLstat     = 3, 4, 5, 6, 7
	fxpOpendir, fxpReaddir, fxpReadlink                = 11, 12, 19
	fxpStatus, fxpHandle, fxpData, fxpName, fxpAttrs   = 101, 102, 103, 104, 105
	fxpExtended, fxpReply                              = 200, 201
	statusOK, statusEOF, statusNoFile                  = 0, 1, 2
	statusUnsupported                                  = 8
	attrSize, attrOwner, attrMode, attrTimes, attrMore = 1, 2, 4, 8, 1 << 31
)

// serveFiles serves files that lie as their path describes, in directories that do:
//
//	names     invalid names, and one name twice
//	endless   a directory without end
//	empty     a directory whose answers have no names
//	deep      a directory in itself, without end
//	types     another kind of file in each answer
//	links     symbolic links out of the guest's files
//	nodes     devices, fifos and setuid programs
//	sizes     sizes, times and counts that no file has
//	reads     a byte at a time, more than requested, nothing, and without end
//	holes     answers where data and holes are that cannot be
//	undead    a file that stays after its removal
//	packets   invalid answers: to no request, of another kind, of 1 GB, cut off, a byte a second,
//	          silence
func serveFiles(json.RawMessage) (func(net.Conn), error) {
	return func(conn net.Conn) {
		defer conn.Close()
		s := &liar{conn: conn, handles: make(map[string]string), listed: make(map[string]bool)}
		for s.request() == nil {
		}
	}, nil
}

type liar struct {
	conn    net.Conn
	handles map[string]string // paths by handle
	listed  map[string]bool   // the handles of directories whose names were sent
	count   uint32
}

// typeRequests counts the requests for a file of types, of all sessions.
var typeRequests atomic.Uint32

func str(s string) []byte { return append(u32(uint32(len(s))), s...) }

func u32(n ...uint32) (b []byte) {
	for _, n := range n {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	return b
}

func join(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// attrs returns attributes with a mode, a size and an old time.
func attrs(mode uint32, size uint64) []byte {
	return join(u32(attrSize|attrOwner|attrMode|attrTimes),
		binary.BigEndian.AppendUint64(nil, size), u32(0, 0, mode, 1e9, 1e9))
}

var (
	directory = attrs(syscall.S_IFDIR|0o777, 4096)
	plain     = attrs(syscall.S_IFREG|0o666, 1000)
)

// file is a name in a directory.
type file struct {
	name  string
	attrs []byte
}

// files returns files with the same attributes.
func files(attrs []byte, names ...string) (all []file) {
	for _, name := range names {
		all = append(all, file{name, attrs})
	}
	return all
}

// listings holds the files of each directory.
var listings = map[string][]file{
	"/": files(directory, "names", "endless", "empty", "deep", "types", "links", "nodes", "sizes",
		"reads", "holes", "undead", "packets"),
	"/names": append(files(directory, ".", ".."), files(plain, "", "a/b", "/etc/passwd",
		"../../../etc/passwd", "nul\x00x", strings.Repeat("x", 10000),
		"twice", "twice", red, "good")...),
	"/types": {{"thing", plain}, {"other", directory}},
	"/links": {
		{"shadow", link(11)}, {"up", link(30)}, {"root", link(1)},
		{"self", link(4)}, {"long", link(1 << 40)}, {"none", link(0)},
	},
	"/nodes": {
		{"null", attrs(syscall.S_IFCHR|0o666, 0)}, {"disk", attrs(syscall.S_IFBLK|0o666, 0)},
		{"fifo", attrs(syscall.S_IFIFO|0o666, 0)},
		{"suid", attrs(syscall.S_IFREG|0o6777, 20)}, {"strange", attrs(0o170000, 0)},
	},
	"/sizes": {
		{"huge", attrs(syscall.S_IFREG|0o666, 1<<64-1)},
		{"half", attrs(syscall.S_IFREG|0o666, 1<<63)},
		{"odd", odd()},
	},
	"/reads": files(plain, "slow", "long", "nothing", "endless", "backwards"),
	"/holes": {
		{"alternate", sparse(4 << 20)}, {"vast", sparse(1<<63 - 1)}, {"beyond", sparse(1 << 20)},
		{"negative", sparse(1 << 20)}, {"back", sparse(1 << 20)}, {"status", sparse(1 << 20)},
		{"old", sparse(1 << 20)}, // as an agent that does not know the question
	},
	"/undead": {{"file", plain}, {"dir", directory}},
	"/packets": files(plain, "nobody", "twice", "kind", "gigabyte", "many", "cut", "gone", "flood",
		"empty", "half", "drip", "silent"),
}

func link(size uint64) []byte { return attrs(syscall.S_IFLNK|0o777, size) }

var links = map[string]string{
	"/links/shadow": "/etc/shadow", "/links/up": "../../../../../../../../../../etc/shadow",
	"/links/root": "/", "/links/self": "self",
	"/links/long": strings.Repeat("x", 100000), "/links/none": "",
}

// sparse returns attributes of a file with one block of data.
func sparse(size uint64) []byte {
	b := join(u32(attrSize|attrMode|attrMore), binary.BigEndian.AppendUint64(nil, size),
		u32(syscall.S_IFREG|0o666, 1), str("stat@banger"), u32(6*8))
	for _, n := range []uint64{1, 8, 0, 1e18, 1e18, 1e18} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}

// seeks holds for the files of holes where data or a hole is, for any request.
var seeks = map[string]func(off uint64) uint64{
	"/holes/alternate": func(off uint64) uint64 { return off + 1 },
	"/holes/vast":      func(off uint64) uint64 { return off + 1 },
	"/holes/beyond":    func(uint64) uint64 { return 1 << 62 },
	"/holes/negative":  func(uint64) uint64 { return 1 << 63 },
	"/holes/back":      func(off uint64) uint64 { return off - min(off, 1) },
}

// odd returns attributes with 1,000 extended ones, the last of which has -1 in all its numbers.
func odd() []byte {
	const n = 1000
	b := join(u32(attrSize|attrMode|attrMore), binary.BigEndian.AppendUint64(nil, 1000),
		u32(syscall.S_IFREG|0o666, n+1))
	for i := range n {
		b = join(b, str(fmt.Sprint("key", i)), str(red))
	}
	return join(b, str("stat@banger"), str(strings.Repeat("\xff", 48)))
}

// lookup returns the attributes that a path pretends to have, nil if there is no such file.
func lookup(path string) []byte {
	if path == "/" {
		return directory
	}
	if strings.HasPrefix(path, "/deep/") {
		return directory
	}
	if strings.HasPrefix(path, "/types/") {
		kinds := []uint32{
			syscall.S_IFREG, syscall.S_IFDIR, syscall.S_IFLNK, syscall.S_IFIFO, syscall.S_IFCHR}
		return attrs(kinds[typeRequests.Add(1)%uint32(len(kinds))]|0o777, 1<<20)
	}
	i := strings.LastIndexByte(path, '/')
	for _, e := range listings[path[:max(1, i)]] {
		if e.name == path[i+1:] {
			return e.attrs
		}
	}
	return nil
}

// request answers one request.
func (s *liar) request() error {
	var head [4]byte
	if _, err := io.ReadFull(s.conn, head[:]); err != nil {
		return err
	}
	b := make([]byte, min(binary.BigEndian.Uint32(head[:]), 1<<20))
	if _, err := io.ReadFull(s.conn, b); err != nil || len(b) < 5 {
		return io.ErrUnexpectedEOF
	}
	kind, b := b[0], b[1:]
	if kind == 1 {
		return s.send(2, u32(3))
	}
	id, b := b[:4], b[4:]
	field := func() string { // the first of all these requests
		if len(b) < 4 || len(b)-4 < int(binary.BigEndian.Uint32(b)) {
			return ""
		}
		n := 4 + binary.BigEndian.Uint32(b)
		f := b[4:n]
		b = b[n:]
		return string(f)
	}
	name := field()
	path, open := s.handles[name]
	if !open {
		path = name
	}
	if misuse, ok := packets[strings.TrimPrefix(path, "/packets/")]; ok && kind != fxpClose {
		return misuse(s, binary.BigEndian.Uint32(id))
	}
	answer := func(kind byte, body ...[]byte) error {
		return s.send(kind, join(append([][]byte{id}, body...)...))
	}
	status := func(code uint32) error { return answer(fxpStatus, u32(code), str(red), str("")) }
	switch kind {
	case fxpLstat:
		if a := lookup(path); a != nil {
			return answer(fxpAttrs, a)
		}
		return status(statusNoFile)
	case fxpReadlink:
		target, ok := links[path]
		if !ok {
			target = "/etc/shadow" // also for a path that is no link
		}
		return answer(fxpName, u32(1), str(target), str(target), u32(0))
	case fxpOpen, fxpOpendir:
		s.count++
		h := fmt.Sprint(s.count)
		s.handles[h] = path
		return answer(fxpHandle, str(h), lookupOr(path, plain), directory)
	case fxpClose:
		delete(s.handles, name)
	case fxpRead:
		off, n := binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:])
		return s.read(path, off, min(n, 128<<10), answer, status)
	case fxpReaddir:
		return s.readdir(name, path, answer, status)
	case fxpExtended:
		if name == "statvfs@openssh.com" {
			return answer(fxpReply, []byte(strings.Repeat("\xff", 11*8)))
		}
		path = s.handles[field()]
		if seek := seeks[path]; seek != nil && name == "seek@banger" {
			at := seek(binary.BigEndian.Uint64(b))
			return answer(fxpReply, binary.BigEndian.AppendUint64(nil, at))
		}
		if path == "/holes/old" {
			return status(statusUnsupported)
		}
	}
	return status(statusOK) // pretends success of any other request
}

// Each sends an answer to the request under way.
type (
	answerFunc func(kind byte, body ...[]byte) error
	statusFunc func(code uint32) error
)

func lookupOr(path string, other []byte) []byte {
	if a := lookup(path); a != nil {
		return a
	}
	return other
}

func (s *liar) read(path string, off uint64, n uint32, answer answerFunc, status statusFunc) error {
	switch path {
	case "/reads/slow":
		if off < 20 {
			return answer(fxpData, str("x"))
		}
	case "/reads/long":
		return answer(fxpData, str(strings.Repeat("x", int(n)+1)))
	case "/reads/nothing":
		if off == 0 {
			return answer(fxpData, str(""))
		}
	case "/reads/backwards":
		return answer(fxpName, u32(1), str("x"), str("x"), plain)
	case "/reads/endless":
		return answer(fxpData, str(strings.Repeat("x", int(n))))
	case "/nodes/suid":
		if off == 0 {
			return answer(fxpData, str("#!/bin/sh\necho evil\n"))
		}
	case "/sizes/huge", "/sizes/half", "/sizes/odd", "/names/good", "/names/twice",
		"/holes/old":
		if off == 0 {
			return answer(fxpData, str("some\n"))
		}
	}
	return status(statusEOF)
}

func (s *liar) readdir(handle, path string, answer answerFunc, status statusFunc) error {
	switch {
	case path == "/empty":
		return answer(fxpName, u32(0))
	case path == "/endless":
		const n = 250
		b := u32(n)
		for range n {
			s.count++
			b = join(b, str(fmt.Sprint("name", s.count)), str(""), plain)
		}
		return answer(fxpName, b)
	}
	list := listings[path]
	if s.listed[handle] {
		return status(statusEOF)
	}
	s.listed[handle] = true
	if strings.HasPrefix(path, "/deep") {
		return answer(fxpName, u32(1), str(strings.Repeat("d", 200)), str(""), directory)
	}
	b := u32(uint32(len(list)))
	for _, e := range list {
		b = join(b, str(e.name), str(""), e.attrs)
	}
	return answer(fxpName, b)
}

func (s *liar) send(kind byte, body []byte) error {
	return s.write(join(u32(uint32(len(body)+1)), []byte{kind}, body))
}

func (s *liar) write(b []byte) error {
	_, err := s.conn.Write(b)
	return err
}

// attrsAnswer returns the bytes of a proper answer with the attributes plain.
func attrsAnswer(id uint32) []byte {
	return join(u32(uint32(len(plain)+5)), []byte{fxpAttrs}, u32(id), plain)
}

// packets holds the invalid answers.
var packets = map[string]func(s *liar, id uint32) error{
	"nobody": func(s *liar, id uint32) error { return s.send(fxpAttrs, join(u32(id+1000), plain)) },
	"twice": func(s *liar, id uint32) error {
		return s.write(join(attrsAnswer(id), attrsAnswer(id)))
	},
	"kind": func(s *liar, id uint32) error { return s.send(fxpData, join(u32(id), str("x"))) },
	"gigabyte": func(s *liar, id uint32) error {
		return s.endless(join(u32(1<<30), []byte{fxpAttrs}, u32(id)))
	},
	"many": func(s *liar, id uint32) error {
		return s.send(fxpAttrs, u32(id, attrMore, 1<<32-1))
	},
	"cut":   func(s *liar, id uint32) error { return s.send(fxpAttrs, u32(id, attrSize)) },
	"gone":  func(s *liar, id uint32) error { return io.EOF },
	"flood": func(s *liar, id uint32) error { return s.endless(nil) },
	"empty": func(s *liar, id uint32) error { return s.write(make([]byte, 9)) },
	"half": func(s *liar, id uint32) error {
		if err := s.write(attrsAnswer(id)[:18]); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, s.conn)
		return err
	},
	"silent": func(*liar, uint32) error { return nil },
	"drip": func(s *liar, id uint32) error {
		for _, b := range attrsAnswer(id) {
			if err := s.write([]byte{b}); err != nil {
				return err
			}
			time.Sleep(time.Second)
		}
		return nil
	},
}

// endless sends start and then random bytes without end.
func (s *liar) endless(start []byte) error {
	b := append(start, random(64<<10)...)
	for {
		if err := s.write(b); err != nil {
			return err
		}
	}
}
