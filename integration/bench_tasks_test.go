package integration

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// task is what a user types to have the same done by banger and by libvirt. Each is a program that
// is started for it. after is typed then, and not measured.
type task struct {
	what          string
	ours, libvirt []string
	after         []string
}

// tasks are those of docs/compare.md that both sides do with the built-in image, in the
// order of a VM's life. Names of files are below the mount's vms, or libvirt's directory.
var tasks = []task{
	{what: "make a VM", ours: []string{"mkdir", "site"}, libvirt: []string{"virsh", "define", "site.xml"},
		after: []string{"sh", "-c", "printf 'net user\ndisk 1G\n' > site/config"}},
	{what: "start it", ours: []string{"banger", "start", "site"},
		libvirt: []string{"virsh", "start", "site"},
		after:   []string{"banger", "wait", "site"}},
	{what: "list", ours: []string{"banger", "ls"}, libvirt: []string{"virsh", "list"}},
	{what: "read its figures", ours: []string{"banger", "status", "site"},
		libvirt: []string{"virsh", "domstats", "site"}},
	{what: "pause it", ours: []string{"banger", "pause", "site"},
		libvirt: []string{"virsh", "suspend", "site"}},
	{what: "let it go on", ours: []string{"banger", "resume", "site"},
		libvirt: []string{"virsh", "resume", "site"}},
	{what: "end it at once", ours: []string{"banger", "kill", "site"},
		libvirt: []string{"virsh", "destroy", "site"}},
	{what: "take a snapshot of the stopped VM's disk",
		ours:    []string{"banger", "snapshot", "create", "site", "one"},
		libvirt: []string{"virsh", "snapshot-create-as", "site", "one"}},
	{what: "restore it", ours: []string{"banger", "snapshot", "restore", "site", "one"},
		libvirt: []string{"virsh", "snapshot-revert", "site", "one"}},
	{what: "remove the snapshot", ours: []string{"banger", "snapshot", "rm", "site", "one"},
		libvirt: []string{"virsh", "snapshot-delete", "site", "one"}},
	{what: "remove the VM", ours: []string{"rmdir", "site"},
		libvirt: []string{"virsh", "undefine", "site"}},
}

// typed runs a command line in a directory and returns its time.
func typed(t *testing.T, d *daemon, dir string, argv ...string) time.Duration {
	t.Helper()
	program, args := argv[0], argv[1:]
	switch program {
	case "banger":
		program, args = filepath.Join(bin, "banger"), append([]string{"--mount", d.mount}, args...)
	case "virsh":
		args = append([]string{"-q"}, args...)
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	return took(func() {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
	})
}

// benchTasks measures tasks with both sides in turns. Both VMs boot the built-in image with the same
// QEMU and accelerator and have one empty qcow2 disk of 1 GiB.
func benchTasks(b *bench) {
	needRealVMs(b.T)
	l := startLibvirt(b.T)
	d := realDaemon(b.T)
	bootWeb(b.T, d)
	commandLine := lastCommandLine(b.T, d, "web")
	l.define(b.T, "site", commandLine)
	disk := filepath.Join(l.dir, "site.qcow2")
	typed(b.T, d, "", "qemu-img", "create", "-q", "-f", "qcow2", disk, "1G")
	l.virsh(b.T, "attach-disk", "site", disk, "vdb", "--subdriver", "qcow2", "--config")
	l.virsh(b.T, "start", "site") // probes QEMU
	l.virsh(b.T, "destroy", "site")
	xml, err := exec.Command("virsh", "dumpxml", "--inactive", "site").Output()
	must(b.T, errors.Join(err, os.WriteFile(filepath.Join(l.dir, "site.xml"), xml, 0o600)))
	l.virsh(b.T, "undefine", "site")
	ours, libvirts := map[string][]time.Duration{}, map[string][]time.Duration{}
	for range rounds {
		for _, k := range tasks {
			ours[k.what] = append(ours[k.what], typed(b.T, d, d.path(""), k.ours...))
			libvirts[k.what] = append(libvirts[k.what], typed(b.T, d, l.dir, k.libvirt...))
			if k.after != nil {
				typed(b.T, d, d.path(""), k.after...)
			}
		}
	}
	for _, k := range tasks {
		b.times(k.what+", against virsh", medianTime(ours[k.what]), medianTime(libvirts[k.what]), "")
	}
}
