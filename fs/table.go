package fs

import (
	"syscall"
	"time"

	"banger/internal/value"
	"banger/vmm"
)

// file is one row of a directory.
type file struct {
	name  string
	mode  uint32 // permission bits; of a VM's file see modeFor
	doc   string
	show  func(*request) ([]byte, error)       // what one open captures
	store func(*request, string) error         // one write, trimmed
	open  func(*request, bool) (handle, error) // instead of show: streams and growing files; the bool: opened read-write
	typed func(*request, []byte) (int, error)  // instead of store: what is written is taken as it is, in part maybe
	takes bool                                 // open is called also for who only writes
	paths bool                                 // store takes paths of the host, which are its opener's
	asks  bool                                 // show may wait for the guest
	files []file                               // of a directory
	list  func(*request) []entry               // of a directory with names of its own
	find  func(*request, string) (entry, bool)
	mkdir func(*request, string, vmm.Owner) error // makes a name in a directory; the request is then of what was made, unless it is gone already
	rmdir func(*request, string) error            // removes one; the request is of the VM that is asked, whose error tells a refusal
	size  func(*request) (int64, time.Time)       // the real size and change, for growing files
	kind  kind
	watch bool // inotify watchers are told of its changes
	heeds bool // whoever holds it is told of changes of health: while the kernel knows it, the daemon asks

	row    uint8 // position in rows
	parent uint8
}

// kind says what a directory is.
type kind uint8

const (
	plain   kind = iota
	dir          // lists its rows
	hidden       // has its rows, lists none: what is in it blocks
	dynamic      // its names come from list and find
)

// entry is a name of a dynamic directory.
type entry struct {
	name   string
	serial uint64
	row    uint8
	param  uint16
}

// rows are all files of the tree by number; the first is the root.
var rows []*file

// Rows that requests are recognised by.
var vmsRow, vmRow, imagesRow, imageRow, portRow, snapshotRow, fsRow, cloneRow, sessionRow *file

func init() {
	top := file{name: "", mode: 0o755, kind: dir, files: topFiles()}
	number(&top, 0)
}

// number gives each row its number, depth first.
func number(f *file, parent uint8) {
	f.row, f.parent = uint8(len(rows)), parent
	rows = append(rows, f)
	for i := range f.files {
		number(&f.files[i], f.row)
	}
	switch f.name {
	case "vms":
		vmsRow, vmRow = f, &f.files[0]
	case "images":
		imagesRow, imageRow = f, &f.files[0]
	case "fs":
		fsRow = f
	case "tcp":
		portRow = &f.files[0]
	case "snapshots":
		snapshotRow = &f.files[0]
	case "exec":
		cloneRow, sessionRow = &f.files[0], &f.files[1]
	}
}

func topFiles() []file {
	return []file{
		{name: "version", mode: 0o444, doc: "banger's version", show: func(r *request) ([]byte, error) { return line(r.server.o.Version) }},
		{name: "config", mode: 0o444, doc: "the daemon's settings in effect", show: func(r *request) ([]byte, error) { return []byte(r.server.o.Config()), nil }},
		{name: "stats", mode: 0o444, doc: "the host's totals", show: hostStatsShow},
		{name: "stats.json", mode: 0o444, doc: "stats as JSON", show: hostStatsJSONShow},
		{name: "metrics", mode: 0o444, doc: "all figures as Prometheus metrics", show: func(r *request) ([]byte, error) { return r.server.o.Metrics.Text() }},
		{name: "list", mode: 0o444, doc: "table, one row per VM", show: listShow},
		{name: "list.json", mode: 0o444, doc: "list as JSON", show: listJSONShow},
		{name: "vmms", mode: 0o444, doc: "table, one row per driver", show: vmmsShow},
		{name: "vmms.json", mode: 0o444, doc: "vmms as JSON", show: vmmsJSONShow},
		{name: "hosts", mode: 0o444, doc: "names and addresses of the running VMs", show: func(r *request) ([]byte, error) { return r.server.o.Manager.Hosts(true), nil }},
		{name: "events", mode: 0o444, doc: "what happened since the daemon started", open: eventsOpen, size: eventsSize, watch: true, heeds: true},
		{name: "error", mode: 0o444, doc: "the last refusal of a mkdir, rmdir or mv by the reader's uid", show: topErrorShow},
		{name: "known_hosts", mode: 0o444, doc: "the VMs' ssh host keys, for ssh", show: knownHostsShow},
		{name: "wait", mode: 0o555, kind: hidden, doc: "what blocks", files: []file{
			{name: "events", mode: 0o444, doc: "blocks for the next event", open: followOpen, heeds: true},
			{name: "import", mode: 0o220, doc: "takes the name of a new VM in a line, and its archive", open: importOpen, typed: importType, takes: true},
		}},
		{name: "blobs", mode: 0o664, doc: "what images share on the host; takes gc", show: blobsShow, store: blobsStore},
		{name: "images", mode: 0o1755, kind: dynamic, doc: "what VMs are made from", list: imagesList, find: imagesFind, mkdir: imagesMake, rmdir: imagesRemove, files: []file{
			{name: "NAME", mode: 0o755, kind: dir, doc: "an image", files: imageFiles()},
		}},
		{name: "vms", mode: 0o1755, kind: dynamic, doc: "the VMs", list: vmsList, find: vmsFind, mkdir: vmsMake, rmdir: vmsRemove, files: []file{
			{name: "NAME", mode: 0o755, kind: dir, doc: "a VM", files: vmFiles()},
		}},
	}
}

func vmFiles() []file {
	files := settingFiles()
	return append(files, []file{
		{name: "config", mode: 0o640, doc: "all settings, flat keyed", show: configShow, store: configStore},
		{name: "config.json", mode: 0o440, doc: "config as JSON", show: configJSONShow},
		{name: "state", mode: 0o640, doc: "where it is in its life; takes commands", show: stateShow, store: stateStore, watch: true},
		{name: "error", mode: 0o440, doc: "the last failure in one sentence", show: func(r *request) ([]byte, error) { return line(sentence(r.snap().Error)) }},
		fact("id", "UUID", func(s *vmm.Snapshot) string { return s.ID }),
		fact("created", "Unix seconds", func(s *vmm.Snapshot) string { return value.FormatTime(s.Created) }),
		fact("started", "Unix seconds", func(s *vmm.Snapshot) string { return value.FormatTime(s.Started) }),
		{name: "touched", mode: 0o640, doc: "the last use; writing renews it", show: touchedShow, store: touchedStore},
		fact("pid", "the VMM's process", pidText),
		fact("address", "the guest's IP", addressText),
		fact("address6", "the guest's IPv6 address", address6Text),
		fact("mac", "the guest's MAC", func(s *vmm.Snapshot) string { return s.MAC }),
		fact("name", "the VM's name", func(s *vmm.Snapshot) string { return s.Name }),
		{name: "ssh_host_key", mode: 0o440, doc: "the guest's public ssh host key", show: func(r *request) ([]byte, error) { return line(r.vm.HostKey()) }},
		fact("dns", "the name by which the host finds it", (*vmm.Snapshot).DNS),
		{name: "console", mode: 0o600, doc: "the guest's serial console", open: consoleOpen, typed: consoleType, size: logSize(vmm.ConsoleFile)},
		{name: "log", mode: 0o440, doc: "what the VMM printed and banger did", open: logOf(vmm.LogFile), size: logSize(vmm.LogFile)},
		{name: "events", mode: 0o440, doc: "this VM's events", open: eventsOpen, size: eventsSize, watch: true, heeds: true},
		{name: "stats", mode: 0o440, doc: "figures, flat keyed", asks: true, show: statsShow},
		{name: "stats.json", mode: 0o440, doc: "stats as JSON", asks: true, show: statsJSONShow},
		{name: "ports", mode: 0o440, doc: "what listens in the guest", asks: true, show: portsShow},
		{name: "ports.json", mode: 0o440, doc: "ports as JSON", asks: true, show: portsJSONShow},
		{name: "health", mode: 0o440, doc: "whether the agent answers", asks: true, show: healthShow, watch: true, heeds: true},
		{name: "health.json", mode: 0o440, doc: "health as JSON", asks: true, show: healthJSONShow},
		{name: "vmm_metrics", mode: 0o440, doc: "what the VMM itself reports, as JSON", asks: true, show: vmmMetricsShow},
		{name: "snapshots", mode: 0o750, kind: dynamic, doc: "of its disks: mkdir takes one, rmdir removes it", list: snapshotsList, find: snapshotsFind, mkdir: snapshotsMake, rmdir: snapshotsRemove, files: []file{
			{name: "NAME", mode: 0o550, kind: dir, doc: "a snapshot", files: snapshotFiles()},
		}},
		{name: "restore", mode: 0o640, doc: "takes the name of the snapshot to put the disks back to", show: restoreShow, store: restoreStore},
		{name: "exec", mode: 0o500, kind: hidden, doc: "commands in the guest", find: execFind, files: []file{
			{name: "clone", mode: 0o600, doc: "opening it makes a session; gives its number N", open: cloneOpen, typed: cloneType},
			{name: "N", mode: 0o700, kind: hidden, doc: "a session", files: []file{
				{name: "ctl", mode: 0o600, doc: "takes commands; gives N", show: ctlShow, typed: ctlType},
				{name: "data", mode: 0o600, doc: "the command's output and input", open: dataOpen, typed: dataType},
				{name: "stderr", mode: 0o400, doc: "its error output", open: stderrOpen},
				{name: "status", mode: 0o400, doc: "blocks until it has ended, and says how", open: statusOpen},
			}},
		}},
		{name: "fs", mode: 0o700, kind: hidden, doc: "the guest's files"},
		{name: "wait", mode: 0o550, kind: hidden, doc: "what blocks", files: []file{
			{name: "events", mode: 0o440, doc: "blocks for the VM's next event", open: followOpen, heeds: true},
			{name: "export", mode: 0o400, doc: "the VM as one file", open: exportOpen},
			{name: "running", mode: 0o440, doc: "blocks until it is so", open: waitState(vmm.Running)},
			{name: "stopped", mode: 0o440, doc: "blocks until it is so", open: waitState(vmm.Stopped)},
			{name: "paused", mode: 0o440, doc: "blocks until it is so", open: waitState(vmm.Paused)},
			{name: "healthy", mode: 0o440, doc: "blocks until the agent answers", open: waitHealthy},
			{name: "tcp", mode: 0o550, kind: hidden, doc: "by port", find: portFind, files: []file{
				{name: "PORT", mode: 0o440, doc: "blocks until something listens on it", open: waitPort},
			}},
		}},
	}...)
}

// fileType returns the type bits of the mode: a directory or a regular file.
func (f *file) fileType() uint32 {
	if f.kind != plain {
		return syscall.S_IFDIR
	}
	return syscall.S_IFREG
}

func (f *file) writable() bool { return f.store != nil || f.typed != nil }

// DocRow is one line of the tree's table, for the documentation's tests.
type DocRow struct {
	Path string // below the mount, with NAME and PORT for names that vary
	Mode uint32
	Doc  string
}

// Doc gives every file and directory of the tree.
func Doc() []DocRow {
	var docs []DocRow
	var walk func(f *file, path string)
	walk = func(f *file, path string) {
		for i := range f.files {
			c := &f.files[i]
			docs = append(docs, DocRow{path + c.name, c.mode, c.doc})
			walk(c, path+c.name+"/")
		}
	}
	walk(rows[0], "")
	return docs
}
