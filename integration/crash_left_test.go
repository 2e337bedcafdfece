package integration

import (
	"database/sql"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	_ "modernc.org/sqlite"
)

// stateFiles are all files that a state directory may have while no command is under way. ID, RUN
// and IMAGE stand for a VM of the tree, one that runs and an image of the tree.
var stateFiles = []string{
	`banger\.db(-wal|-shm)?`, `instance`, `lock`, `seq`, `audit([./].*)?`, `images`, `vms`,
	`images/(builtin|IMAGE)(/[a-z]+\.(json|img|cpio|gz|qcow2)|/vmlinu[xz]|/initrd)?`,
	`images/\.blobs(/(layers|built)(/[^./][^/]*(/[^/]+)?)?)?`,
	`vms/ID(/(log|console\.log|ssh_host_ed25519_key|disks))?`,
	`vms/ID/disks/(work\.qcow2|overlay\.img|seed\.img)`,
	`vms/ID/disks/snapshot-banger-\d+(/[a-z]+\.qcow2)?`, // of fake VMs
	`vms/RUN/(fake\.json|agent|console|qmp)`,
}

// left reports all that belongs to no VM and no image of the tree.
func (k *campaign) left() {
	k.t.Helper()
	ids := map[string]bool{}
	running, snapshots := []string{"none"}, 0
	for _, l := range k.lives {
		if l.state == "" {
			continue
		}
		id, err := read(k.d.path(l.name, "id"))
		must(k.t, err)
		ids[id] = true
		if l.state == "running" {
			running = append(running, id)
		}
		snapshots += len(l.snapshots)
	}
	images := []string{"none"}
	for _, i := range k.images {
		if i.state != "" {
			images = append(images, i.name)
		}
	}
	all := append(slices.Collect(maps.Keys(ids)), "none")
	pattern := strings.NewReplacer("ID", "("+strings.Join(all, "|")+")",
		"RUN", "("+strings.Join(running, "|")+")", "IMAGE", "("+strings.Join(images, "|")+")").
		Replace(`\A(\.|` + strings.Join(stateFiles, "|") + `)\z`)
	known := regexp.MustCompile(pattern)
	k.soon("files in the state directory", func() (odd []string) {
		saved := 0
		for _, path := range tree(k.d.state) {
			if !known.MatchString(path) {
				odd = append(odd, path)
			}
			if ok, _ := filepath.Match("vms/*/disks/snapshot-*", path); ok {
				saved++
			}
		}
		if k.vmm == "fake" && saved != snapshots {
			odd = append(odd, fmt.Sprintf("%d snapshots for %d that are listed", saved, snapshots))
		}
		return odd
	})
	k.soon("processes", k.d.strangers)
	k.soon("mounts", func() []string { return k.d.mounts()[1:] })
	if k.vmm == "qemu" { // an adopted guest that was rebooting gets a new one
		k.soon("QEMUs", func() []string {
			if n := len(k.d.machines()); n != len(running)-1 {
				return []string{fmt.Sprintf("%d for %d running VMs", n, len(running)-1)}
			}
			return nil
		})
	}
	taps := k.d.taps(k.t)
	if len(taps) > len(running)-1 {
		k.t.Errorf("round %d: taps %q for %d running VMs", k.round, taps, len(running)-1)
	}
	for _, tap := range tapNames.FindAllString(k.d.ruleset(), -1) {
		if !slices.Contains(taps, strings.Trim(tap, `"`)) {
			k.t.Errorf("round %d: nftables has elements for %s, which is not there", k.round, tap)
		}
	}
	k.soon("cgroups", func() []string { return k.d.cgroups(running) })
	k.collectBlobs()
}

// soon reports what is left. The daemon removes some of it in the background after its start.
func (k *campaign) soon(what string, find func() []string) {
	k.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		odd := find()
		if len(odd) == 0 {
			return
		}
		if time.Now().After(end) {
			k.t.Errorf("round %d: %s that are nobody's: %q", k.round, what, odd)
			return
		}
	}
}

// tree returns the paths of all that is below a directory, from there.
func tree(dir string) (paths []string) {
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, path); err == nil {
			paths = append(paths, rel)
		}
		return nil // it was removed meanwhile
	})
	return paths
}

// strangers returns the processes that have a file of the state directory open, or stand in it, and
// are neither the daemon nor a VMM: what is left of builds, imports and exports.
func (d *daemon) strangers() (odd []string) {
	machines := d.machines()
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		pid, _ := strconv.Atoi(filepath.Base(proc))
		if pid == d.cmd.Process.Pid || slices.Contains(machines, pid) {
			continue
		}
		links, _ := filepath.Glob(filepath.Join(proc, "fd", "*"))
		for _, link := range append(links, filepath.Join(proc, "cwd")) {
			to, _ := os.Readlink(link)
			if strings.HasPrefix(to, d.state+"/") {
				odd = append(odd, fmt.Sprintf("%d %q has %s", pid, readFile(proc+"/cmdline"), to))
				break
			}
		}
	}
	return odd
}

// mounts returns the mount points at and below the daemon's directories. The first is its own.
func (d *daemon) mounts() (points []string) {
	for line := range strings.Lines(readFile("/proc/self/mountinfo")) {
		// Field 5 is the mount point (proc_pid_mountinfo(5)).
		if f := strings.Fields(line); strings.HasPrefix(f[4], filepath.Dir(d.mount)+"/") {
			points = append(points, f[4])
		}
	}
	return points
}

var tapNames = regexp.MustCompile(`"bt\d+-\d+"`)

// ruleset returns nftables' tables of the daemon's bridge, "" without any.
func (d *daemon) ruleset() string {
	text := ""
	for _, family := range []string{"inet", "bridge"} {
		out, _ := exec.Command("nft", "list", "table", family, "banger_"+d.bridge).Output()
		text += string(out)
	}
	return text
}

var uuids = regexp.MustCompile(`\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\z`)

// cgroups returns the cgroups of VMs that do not run. They are named by the VM's id, below one that
// is named by the state directory's instance.
func (d *daemon) cgroups(running []string) (odd []string) {
	instance := strings.TrimSpace(readFile(filepath.Join(d.state, "instance")))
	for _, path := range tree("/sys/fs/cgroup") {
		dir, name := filepath.Split(path)
		if strings.Contains(dir, instance) && uuids.MatchString(name) &&
			!slices.Contains(running, name) {
			odd = append(odd, path)
		}
	}
	return odd
}

// collectBlobs has the files that no image needs removed, in some of the rounds.
func (k *campaign) collectBlobs() {
	if k.round%3 != 0 {
		return
	}
	blobs := filepath.Join(k.d.mount, "blobs")
	must(k.t, write(blobs, "gc"))
	text, err := read(blobs)
	if err != nil || !strings.Contains(text+"\n", "unused_bytes 0\n") {
		k.t.Errorf("round %d: after gc, blobs reads %q (%v)", k.round, text, err)
	}
}

// records ends the daemon, looks into its records, and starts another.
func (k *campaign) records() {
	k.t.Helper()
	must(k.t, k.d.signal(syscall.SIGTERM))
	db, err := sql.Open("sqlite", "file:"+filepath.Join(k.d.state, "banger.db")+"?mode=ro")
	must(k.t, err)
	vms := 0
	for _, l := range k.lives {
		if l.state != "" {
			vms++
		}
	}
	for query, want := range map[string]string{
		"PRAGMA integrity_check":   "ok",
		"SELECT count(*) FROM vms": fmt.Sprint(vms),
		"SELECT count(*) FROM leases WHERE serial NOT IN (SELECT serial FROM vms)":    "0",
		"SELECT count(*) FROM snapshots WHERE serial NOT IN (SELECT serial FROM vms)": "0",
		"SELECT count(*) FROM snapshots WHERE phase != 'kept'":                        "0",
	} {
		var is string
		if err := db.QueryRow(query).Scan(&is); err != nil || is != want {
			k.t.Errorf("round %d: %s returns %q (%v), not %s", k.round, query, is, err, want)
		}
	}
	must(k.t, db.Close()) // the daemon locks it
	must(k.t, k.d.start())
}
