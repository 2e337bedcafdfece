package fs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"banger/fs/guestfs"
	"banger/internal/audit"
	"banger/vmm"
)

// maxTold bounds the bytes of a written text in a line of the audit.
const maxTold = 128

// tell adds a line to the audit about a request that changes something. Its path is found when the
// line is written. slow allows holding up a user who makes very many changes.
func (s *Server) tell(stop interrupt, c fuse.Caller, kind audit.Kind, committed bool,
	path func() string, what string, code status) {
	switch code {
	case fuse.OK, fuse.EINTR: // after EINTR the change goes on
	default:
		kind = audit.Refusal
	}
	s.o.Audit.Add(stop, kind, c.Uid, committed && code.Ok(), func() audit.Line {
		return audit.Line{UID: c.Uid, PID: c.Pid, Comm: commOf(c.Pid), Path: path(), What: what,
			Result: resultOf(syscall.Errno(code))}
	})
}

// Result returns how the audit names the result of a change.
func Result(err error) string { return resultOf(errno(err)) }

func resultOf(code syscall.Errno) string {
	if code == 0 {
		return "ok"
	}
	if name := unix.ErrnoName(code); name != "" {
		return name
	}
	return strconv.Itoa(int(code))
}

// commOf returns the name of a thread, empty for one that is gone or invisible.
func commOf(tid uint32) string {
	if tid == 0 {
		return ""
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", tid))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSuffix(comm, []byte("\n")))
}

// caller returns the process behind the call.
func (c *call) caller() fuse.Caller {
	return fuse.Caller{Owner: fuse.Owner{Uid: c.uid, Gid: c.gid}, Pid: c.pid}
}

// path returns the place of the request's file below the mount.
func (r *request) path() string { return r.file.pathFor(r) }

// pathFor returns the place of a file above or at that of a request.
func (f *file) pathFor(r *request) string {
	if f.parent == f {
		return ""
	}
	own := f.name
	if names := f.parent.names; names != nil && f == &names.each && names.name != nil {
		own = names.name(r)
	}
	if dir := f.parent.pathFor(r); dir != "" {
		return dir + "/" + own
	}
	return own
}

// pathOf returns the place of a node below the mount, and empty for one that is gone.
func (b *bridge) pathOf(node uint64) string {
	if guestfs.IsFile(node) {
		serial, path := b.guests.Path(node)
		v := b.o.Manager.BySerial(serial)
		if v == nil {
			return ""
		}
		return "vms/" + v.Snapshot().Name + "/fs" + path
	}
	c := b.newCall(nil, fuse.Caller{})
	r, ok := c.resolve(node)
	if !ok {
		return ""
	}
	return r.path()
}

// toldName adds a line about a change of a name in a directory.
func (b *bridge) toldName(stop interrupt, h *fuse.InHeader, name, what string, code status) status {
	kind := audit.Change
	if inGuest(h.NodeId) {
		kind = audit.Guest
	}
	b.tell(stop, h.Caller, kind, true,
		func() string { return strings.TrimPrefix(b.pathOf(h.NodeId)+"/"+name, "/") }, what, code)
	return code
}

// toldOpen adds a line about an open that lets a guest's file be changed.
func (b *bridge) toldOpen(stop interrupt, in *fuse.OpenIn, code status) status {
	if guestfs.IsFile(in.NodeId) && in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		b.tell(stop, in.Caller, audit.Guest, false,
			func() string { return b.pathOf(in.NodeId) }, "write", code)
	}
	return code
}

// toldAttr adds a line about a change of attributes.
func (b *bridge) toldAttr(stop interrupt, in *fuse.SetAttrIn, code status) status {
	what, owner := attrChange(in)
	kind := audit.Change
	switch {
	case guestfs.IsFile(in.NodeId):
		kind = audit.Guest
	case in.Pid == b.nudgerTID.Load() && in.Uid == b.uid:
		return code // it wakes inotify's watchers
	case owner:
	case in.Valid&fuse.FATTR_SIZE != 0 && code.Ok():
		return code // an O_TRUNC, which means nothing
	default:
		kind = audit.Stream
	}
	if what != "" {
		b.tell(stop, in.Caller, kind, false,
			func() string { return b.pathOf(in.NodeId) }, what, code)
	}
	return code
}

// attrChange describes a change of attributes, and reports whether it is of the owner or the mode.
func attrChange(in *fuse.SetAttrIn) (what string, owner bool) {
	id := func(bit, value uint32) string {
		if in.Valid&bit == 0 {
			return ""
		}
		return strconv.FormatUint(uint64(value), 10)
	}
	var parts []string
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		parts = append(parts,
			"chown:"+id(fuse.FATTR_UID, in.Uid)+":"+id(fuse.FATTR_GID, in.Gid))
	}
	if in.Valid&fuse.FATTR_MODE != 0 {
		parts = append(parts, fmt.Sprintf("chmod:%04o", in.Mode&0o7777))
	}
	owner = parts != nil
	if in.Valid&fuse.FATTR_SIZE != 0 {
		parts = append(parts, fmt.Sprintf("truncate:%d", in.Size))
	} else if in.Valid&(fuse.FATTR_MTIME|fuse.FATTR_ATIME) != 0 {
		parts = append(parts, "utimes")
	}
	return strings.Join(parts, ","), owner
}

// toldWrite adds a line about a write to a row of the tree. Only the first write of an open stream
// has one.
func (t tree) toldWrite(stop interrupt, c fuse.Caller, r *request, h *opened, data []byte,
	code status) {
	if code == fuse.EAGAIN && r.file.write != nil {
		return // the stream takes nothing now
	}
	what, kind := "", audit.Change
	switch {
	case r.file.told != nil:
		what = r.file.told(string(data))
	case r.file.write == nil:
		what = withLength("write", data)
	case code.Ok() && h.told.Swap(true):
	default:
		what, kind = "write", audit.Stream
	}
	if r.file.has(cheap) {
		kind = audit.Stream
	}
	if what != "" {
		t.tell(stop, c, kind, false, r.path, what, code)
	}
}

// withLength is what the audit shows of a text that is not for all who read it.
func withLength[T string | []byte](what string, text T) string {
	return fmt.Sprintf("%s[%d]", what, len(text))
}

// asWritten shows the text in the audit.
func asWritten(text string) string { return "write:" + told(strings.TrimSpace(text)) }

// told returns a text, cut if it is long.
func told(text string) string {
	if len(text) <= maxTold {
		return text
	}
	return withLength(strings.ToValidUTF8(text[:maxTold], "")+"...", text)
}

// configTold shows the settings of `config`, those without a Told value by its length.
func configTold(text string) string {
	var parts []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		key, value, _ := strings.Cut(line, " ")
		s := vmm.FindSetting(key)
		if key != "" && (s == nil || !s.Told) {
			line = withLength(told(key), value)
		}
		if line != "" {
			parts = append(parts, line)
		}
	}
	return "write:" + told(strings.Join(parts, ","))
}

// ctlTold shows the commands that start something in a guest or end it, without their text.
func ctlTold(text string) string {
	word, rest := cutControl(text)
	switch word {
	case "run", "argv", "dial", "signal":
		return withLength(word, rest)
	}
	return ""
}

// auditText is the text that all openers of `audit` read.
type auditText struct{ *audit.Reader }

func (t auditText) now() ([]byte, int64) { return t.Text() }

// auditOpen opens the audit so far. A reader that stays sees it grow.
func auditOpen(r *openRequest) (handle, error) {
	file, g := plainID(r.node), &r.server.growing
	s := g.hold(file, nil)
	if s == nil {
		text, err := r.auditText()
		if err != nil {
			return nil, err
		}
		if s = g.hold(file, &shared{text: text}); s.text != growingText(text) {
			text.Close()
		}
	}
	return &growingFile{text: s.text, end: func() {
		if g.release(file) {
			s.text.(auditText).Close()
		}
	}}, nil
}

// auditText reads the audit. Its caller is free when the disk does not answer.
func (r *openRequest) auditText() (auditText, error) {
	if r.server.o.Audit == nil {
		return auditText{}, fmt.Errorf("this daemon keeps no audit: %w", vmm.ErrUnsupported)
	}
	defer r.blocking()()
	read := make(chan auditText, 1)
	err := r.detached(func(context.Context) error {
		text, err := r.server.o.Audit.Reader()
		read <- auditText{text}
		return err
	})
	if err != nil {
		go func() { // ends with the disk's answer, at the latest with the process
			if t := <-read; t.Reader != nil {
				t.Close()
			}
		}()
		return auditText{}, err
	}
	return <-read, nil
}

func auditAttr(r *request, a *attributes) {
	if r.server.o.Audit == nil {
		return
	}
	a.size, a.changed = r.server.o.Audit.Size()
	if s := r.server.growing.get(plainID(r.node)); s != nil {
		text, dropped := s.text.now()
		a.size = dropped + int64(len(text))
	}
}
