package fs

import (
	"fmt"
	"path"
	"slices"
	"strconv"

	"banger/vmm"
)

// file is one row of the table: a file or a directory of the tree.
type file struct {
	name  string
	mode  uint32 // permission bits; of a VM's file see modeFor
	doc   string
	kind  kind
	show  func(*request) ([]byte, error) // returns the capture of one open
	store func(*writeRequest, string) error
	open  func(*openRequest) (handle, error)       // in place of show: streams and growing files
	write func(*writeRequest, []byte) (int, error) // in place of store: untrimmed, maybe in part
	chown func(*request, ownerChange) error        // changes owner or mode of a directory
	attr  func(*request, *attributes)              // adjusts the attributes
	watch func(event string) bool                  // reports whether such an event changes the file
	told  func(text string) string                 // what the audit shows of a write; nil: its length
	flags flags
	files []file
	names *names // of a directory with names that vary
	owner owner  // of what the row belongs to; rows below it have the same

	// Set by enter.
	number    uint8 // index in rows
	parent    *file // of the root, itself
	listed    []entry
	guestRoot *file // among files, listed only while a guest's files are shown
}

// kind distinguishes files and directories.
type kind uint8

const (
	plain     kind = iota
	dir            // lists its files and names
	hidden         // lists nothing: its files block
	guestRoot      // shows the root of a guest, see package guestfs
)

// owner is the kind of serial that the node numbers of a row have.
type owner uint8

const (
	ofTop owner = iota // serial 0
	ofVM
	ofImage
	ofSession
	ofQuota
)

// flags of a file.
type flags uint8

const (
	opensWriters  flags = 1 << iota // open is called for write-only opens, too
	storesPaths                     // store resolves paths with the rights of the opener
	asksGuest                       // show may wait for the guest
	uncached                        // the kernel keeps no attributes: they change unannounced
	followsHealth                   // the daemon polls health for watchers and openers
	cheap                           // a write costs nothing: the audit may leave it out
	holdsVMs                        // an open file holds VMs
)

// names are the varying names of a directory.
type names struct {
	list   func(*request) []dirent // nil if they are not listed
	find   func(*request, string) (dirent, bool)
	mkdir  func(*request, string, vmm.Owner) error
	rmdir  func(*request, string) error
	rename func(r *request, from, to string) error
	name   func(*request) string // of the one that a request below is for; nil: unknown
	each   file                  // the row of each name
}

// dirent is one of the names.
type dirent struct {
	name   string
	serial uint64
	param  uint16
}

// rows holds all files of the tree by number. The first is the root.
var rows []*file

// watched holds the rows that inotify's watchers may wait for.
var watched []*file

func init() {
	root := &file{mode: 0o755, kind: dir, files: topFiles()}
	root.enter(root)
}

// enter adds a row and those below it to rows. A node number has 8 bits for the index.
func (f *file) enter(parent *file) {
	if len(rows) > maxRow {
		panic(fmt.Sprintf("the tree has over %d files: widen the row of node numbers", maxRow+1))
	}
	f.number, f.parent = uint8(len(rows)), parent
	if f.owner == ofTop {
		f.owner = parent.owner
	}
	rows = append(rows, f)
	if f.watch != nil {
		watched = append(watched, f)
	}
	for i := range f.files {
		c := &f.files[i]
		c.enter(f)
		if c.kind == guestRoot {
			f.guestRoot = c
		} else {
			f.listed = append(f.listed, entry{dirent{name: c.name}, c})
		}
	}
	if f.names != nil {
		f.names.each.enter(f)
	}
}

func topFiles() []file {
	return []file{
		helpFile(0o444),
		shown("version", 0o444, "banger's version", versionShow),
		shown("config", 0o444, "the daemon's settings in effect", daemonConfigShow),
		shown("stats", 0o444, "the host's totals", hostStatsShow),
		shown("stats.json", 0o444, "stats as JSON", hostStatsJSONShow),
		shown("metrics", 0o444, "all figures as Prometheus metrics", metricsShow),
		shown("list", 0o444, "table, one row per VM", listShow),
		shown("list.json", 0o444, "list as JSON", listJSONShow),
		shown("vmms", 0o444, "the kinds of VMM and what each can do", vmmsShow),
		shown("vmms.json", 0o444, "vmms as JSON", vmmsJSONShow),
		shown("hosts", 0o444, "names and addresses of the running VMs", hostsShow),
		{name: "events", mode: 0o444, doc: "the events since the daemon started", open: eventsOpen,
			attr: eventsAttr, watch: anyEvent, flags: followsHealth | uncached},
		shown("error", 0o444, "the last refused mkdir, rmdir or mv of the uid", topErrorShow),
		shown("known_hosts", 0o444, "the VMs' ssh host keys, for ssh", knownHostsShow),
		{name: "audit", mode: 0o400, doc: "who changed what, for root", open: auditOpen,
			attr: auditAttr, flags: uncached},
		{name: "wait", mode: 0o555, kind: hidden, doc: "files that block", files: []file{
			{name: "events", mode: 0o444, doc: "blocks for the next event", open: waitEventsOpen,
				flags: followsHealth},
			{name: "import", mode: 0o220, doc: "a line with the name of a new VM, and its archive",
				open: importOpen, write: importWrite, flags: opensWriters},
		}},
		{name: "blobs", mode: 0o664, doc: "what images share on the host; the command is gc",
			show: blobsShow, store: blobsStore, told: asWritten},
		{name: "hold", mode: 0o664, doc: "VMs that are removed when an open file is closed",
			show: heldShow, store: holdStore, told: asWritten, flags: holdsVMs},
		{name: "quota", mode: 0o755, kind: dir, doc: "what users' VMs have and may have",
			names: &names{list: quotaList, find: quotaFind, name: quotaName,
				each: file{name: "UID", mode: 0o755, kind: dir, doc: "a user, or default",
					files: quotaFiles(), owner: ofQuota}}},
		{name: "images", mode: 0o1755, kind: dir, doc: "what VMs are made from", names: &names{
			list: imagesList, find: imagesFind, mkdir: imagesMkdir, rmdir: imagesRmdir,
			name: imagesName,
			each: file{name: "NAME", mode: 0o755, kind: dir, doc: "an image", files: imageFiles(),
				owner: ofImage},
		}},
		{name: "vms", mode: 0o1755, kind: dir, doc: "the VMs", attr: vmsAttr, names: &names{
			list: vmsList, find: vmsFind, mkdir: vmsMkdir, rmdir: vmsRmdir, rename: vmsRename,
			name: func(r *request) string { return r.snap().Name },
			each: file{name: "NAME", mode: 0o755, kind: dir, doc: "a VM", files: vmFiles(),
				attr: vmAttr, chown: vmChown, owner: ofVM},
		}},
	}
}

func vmFiles() []file {
	return slices.Concat(settingFiles(""), []file{
		{name: "limits", mode: 0o750, kind: dir, doc: "what it may take of the host",
			files: settingFiles("limits")},
		helpFile(0o440),
		{name: "config", mode: 0o640, doc: "all settings, flat keyed",
			show: configShow, store: configStore, told: configTold},
		shown("config.json", 0o440, "config as JSON", configJSONShow),
		{name: "state", mode: 0o640, doc: "where it is in its life; commands", show: stateShow,
			store: stateStore, watch: onEvent(vmm.EventState), told: asWritten},
		fact("error", "the last failure in one sentence", errorText),
		fact("id", "UUID", func(s *vmm.Snapshot) string { return s.ID }),
		fact("created", "Unix seconds", createdText),
		fact("started", "Unix seconds", startedText),
		{name: "touched", mode: 0o640, doc: "the last use; writing renews it", show: touchedShow,
			store: touchedStore, attr: touchedAttr, told: asWritten, flags: cheap},
		fact("pid", "the VMM's process", pidText),
		fact("address", "the guest's IP", addressText),
		fact("address6", "the guest's IPv6 address", address6Text),
		fact("mac", "the guest's MAC", func(s *vmm.Snapshot) string { return s.MAC }),
		fact("name", "the VM's name", func(s *vmm.Snapshot) string { return s.Name }),
		shown("ssh_host_key", 0o440, "the guest's public ssh host key", hostKeyShow),
		fact("dns", "the name by which the host finds it", (*vmm.Snapshot).DNS),
		{name: "console", mode: 0o600, doc: "the guest's serial console", open: consoleOpen,
			write: consoleWrite, attr: logAttr(vmm.ConsoleFile), flags: uncached},
		{name: "log", mode: 0o440, doc: "the output of the VMM, and banger's own lines",
			open: logOpen(vmm.LogFile), attr: logAttr(vmm.LogFile), flags: uncached},
		{name: "events", mode: 0o440, doc: "this VM's events", open: eventsOpen, attr: eventsAttr,
			watch: anyVMEvent, flags: followsHealth | uncached},
		asked("stats", "figures, flat keyed", statsShow),
		asked("stats.json", "stats as JSON", statsJSONShow),
		asked("ports", "what listens in the guest", portsShow),
		asked("ports.json", "ports as JSON", portsJSONShow),
		{name: "health", mode: 0o440, doc: "whether the agent answers", show: healthShow,
			watch: onEvent(vmm.EventState, vmm.EventHealth), flags: asksGuest | followsHealth},
		asked("health.json", "health as JSON", healthJSONShow),
		asked("vmm_metrics", "the VMM's own report, as JSON", vmmMetricsShow),
		{name: "snapshots", mode: 0o750, kind: dir, doc: "of its disks, by mkdir and rmdir",
			names: &names{
				list: snapshotsList, find: snapshotsFind,
				mkdir: snapshotsMkdir, rmdir: snapshotsRmdir, name: snapshotsName,
				each: file{name: "NAME", mode: 0o550, kind: dir, doc: "a snapshot",
					files: snapshotFiles(), attr: snapshotAttr},
			}},
		{name: "restore", mode: 0o640, doc: "the name of the snapshot to put the disks back to",
			show: restoreShow, store: restoreStore, told: asWritten},
		{name: "exec", mode: 0o500, kind: hidden, doc: "commands in the guest", names: &names{
			find: execFind,
			name: func(r *request) string { return strconv.Itoa(r.session.number) },
			each: file{name: "N", mode: 0o700, kind: hidden, doc: "a session", owner: ofSession,
				files: []file{
					{name: "ctl", mode: 0o600, doc: "commands; shows N",
						show: ctlShow, write: ctlWrite, told: ctlTold},
					{name: "data", mode: 0o600, doc: "the command's output and input", open: dataOpen,
						write: dataWrite},
					streamed("stderr", 0o400, "its error output", stderrOpen),
					streamed("status", 0o400, "blocks until it has ended, and shows how", statusOpen),
				}},
		}, files: []file{
			{name: "clone", mode: 0o600, doc: "opening it makes a session; shows its number N",
				open: cloneOpen, write: cloneWrite, told: ctlTold},
		}},
		{name: "fs", mode: 0o700, kind: guestRoot, doc: "the guest's files"},
		{name: "wait", mode: 0o550, kind: hidden, doc: "files that block", files: []file{
			{name: "events", mode: 0o440, doc: "blocks for the VM's next event",
				open: waitEventsOpen, flags: followsHealth},
			streamed("export", 0o400, "the VM as one file", exportOpen),
			streamed("running", 0o440, "blocks until it is so", waitState(vmm.Running)),
			streamed("stopped", 0o440, "blocks until it is so", waitState(vmm.Stopped)),
			streamed("paused", 0o440, "blocks until it is so", waitState(vmm.Paused)),
			streamed("healthy", 0o440, "blocks until the agent answers", waitHealthy),
			{name: "tcp", mode: 0o550, kind: hidden, doc: "by port", names: &names{
				find: portFind,
				// Cached attributes of up to 65,535 ports would outlast a change of owner.
				each: file{name: "PORT", mode: 0o440, doc: "blocks until something listens on it",
					open: waitPort, flags: uncached},
			}},
		}},
	})
}

// shown returns the row of a generated file.
func shown(name string, mode uint32, doc string, show func(*request) ([]byte, error)) file {
	return file{name: name, mode: mode, doc: doc, show: show}
}

// asked returns the row of a VM's generated file whose show may wait for the guest.
func asked(name, doc string, show func(*request) ([]byte, error)) file {
	return file{name: name, mode: 0o440, doc: doc, show: show, flags: asksGuest}
}

// streamed returns the row of a file with a handle of its own.
func streamed(name string, mode uint32, doc string, open func(*openRequest) (handle, error)) file {
	return file{name: name, mode: mode, doc: doc, open: open}
}

// has reports whether a flag is set.
func (f *file) has(flag flags) bool { return f.flags&flag != 0 }

func (f *file) writable() bool { return f.store != nil || f.write != nil }

// child returns the row of a fixed name.
func (f *file) child(name string) *file {
	for i := range f.files {
		if f.files[i].name == name {
			return &f.files[i]
		}
	}
	return nil
}

// path returns the place of a file below the mount. It replaces NAME by name.
func (f *file) path(name string) string {
	if f.parent == f {
		return ""
	}
	own := f.name
	if f.parent.names != nil && f == &f.parent.names.each {
		own = name
	}
	return path.Join(f.parent.path(name), own)
}

// onEvent returns a watch for some kinds of events.
func onEvent(kinds ...string) func(string) bool {
	return func(event string) bool { return slices.Contains(kinds, event) }
}

func anyEvent(string) bool         { return true }
func anyVMEvent(event string) bool { return event != vmm.EventImage }

// DocRow is one row of the tree's table, for the documentation's tests.
type DocRow struct {
	Path string // below the mount, with NAME, N, PORT and UID for names that vary
	Mode uint32
	Doc  string
}

// Doc returns every file and directory of the tree.
func Doc() []DocRow {
	var docs []DocRow
	for _, f := range rows[1:] {
		docs = append(docs, DocRow{f.docPath(), f.mode, f.doc})
	}
	return docs
}

func (f *file) docPath() string {
	if f.parent == f {
		return ""
	}
	return path.Join(f.parent.docPath(), f.name)
}
