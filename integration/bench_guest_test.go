package integration

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// tookRun returns the time of a command, which must succeed.
func tookRun(t *testing.T, cmd *exec.Cmd) time.Duration {
	t.Helper()
	return took(func() {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%.300s", cmd, err, out)
		}
	})
}

// benchExec compares commands through the agent with commands through ssh on the guest's network.
func benchExec(b *bench) {
	d, host, options := sshGuest(b.T, "128M")
	ours := func(argv ...string) func() *exec.Cmd {
		return func() *exec.Cmd { return d.client(append([]string{"exec"}, argv...)...) }
	}
	ssh := func(line string) func() *exec.Cmd {
		return func() *exec.Cmd {
			return exec.Command("ssh", append(slices.Clone(options), host, line)...)
		}
	}
	run := func(command func() *exec.Cmd) func() time.Duration {
		return func() time.Duration { return tookRun(b.T, command()) }
	}
	x, y := compare(run(ours("web", "true")), run(ssh("true")))
	b.times("banger exec of true, against ssh", x, y, "≤ 0.5x")

	const size = 32 << 20
	send := func(command func() *exec.Cmd) func() time.Duration {
		return func() time.Duration {
			cmd := command()
			cmd.Stdin = noise(2, size)
			return tookRun(b.T, cmd)
		}
	}
	receive := func(command func() *exec.Cmd) func() time.Duration {
		return func() time.Duration {
			cmd := command()
			cmd.Stdout = io.Discard
			return took(func() { must(b.T, cmd.Run()) })
		}
	}
	for _, c := range []struct {
		what, line string
		pass       func(func() *exec.Cmd) func() time.Duration
	}{
		{"throughput into a command, against ssh", "cat >/dev/null", send},
		{"throughput out of a command, against ssh",
			fmt.Sprintf("dd if=/dev/zero bs=64k count=%d 2>/dev/null", size>>16), receive},
		// busybox prints a few KiB at once
		{"the same, printed in small pieces", fmt.Sprintf("head -c %d /dev/zero", size), receive},
	} {
		command := ours("-i", "web", "--", "/bin/sh", "-c", c.line)
		x, y := compareRounds(3, c.pass(command), c.pass(ssh(c.line)))
		b.row(c.what, rate(size/1e6, "MB/s", x), rate(size/1e6, "MB/s", y), "≥ 1x")
	}
}

// benchFiles compares copies through the agent with scp on the guest's network.
func benchFiles(b *bench) {
	d, host, options := sshGuest(b.T, "384M")
	dir := b.TempDir()
	const size, many = 32 << 20, 1000
	big, err := os.Create(filepath.Join(dir, "big"))
	must(b.T, err)
	_, err = io.Copy(big, noise(3, size))
	must(b.T, err)
	must(b.T, big.Close())
	writeTree(b.T, filepath.Join(dir, "tree"), many)
	ours, theirs := filepath.Join(dir, "ours"), filepath.Join(dir, "theirs")
	for _, sub := range []string{ours, theirs} {
		must(b.T, os.Mkdir(sub, 0o755))
	}
	scp := func(from, to string) func() time.Duration {
		return func() time.Duration {
			// dropbear has no sftp server: the older protocol, in which a tree is one stream.
			argv := slices.Concat([]string{"-O", "-r", "-p"}, options, []string{from, to})
			return tookRun(b.T, exec.Command("scp", argv...))
		}
	}
	cp := func(from, to string) func() time.Duration {
		return func() time.Duration { return tookRun(b.T, d.client("cp", from, to)) }
	}
	for _, c := range []struct{ what, name string }{
		{"one file of 32 MiB", "big"}, {fmt.Sprintf("a tree of %d files", many), "tree"},
	} {
		from, inside := filepath.Join(dir, c.name), "/tmp/"+c.name
		x, y := compareRounds(3, cp(from, "web:/tmp"), scp(from, host+":/tmp"))
		b.times("banger cp of "+c.what+" into a guest, against scp", x, y, "≤ 1.0x")
		x, y = compareRounds(3, cp("web:"+inside, ours), scp(host+":"+inside, theirs))
		b.times("banger cp of "+c.what+" out of a guest, against scp", x, y, "≤ 1.0x")
	}
	hole := filepath.Join(dir, "hole")
	must(b.T, os.WriteFile(hole, []byte("x"), 0o644))
	must(b.T, os.Truncate(hole, 1<<30))
	x, y := compareRounds(3, cp(hole, "web:/tmp"), cp(big.Name(), "web:/tmp"))
	b.times("banger cp of a hole of 1 GiB into a guest, against 32 MiB of data", x, y, "≤ 0.2x")
	x, y = compareRounds(3, cp("web:/tmp/hole", ours), cp("web:/tmp/big", ours))
	b.times("banger cp of a hole of 1 GiB out of a guest, against 32 MiB of data", x, y, "≤ 0.2x")
}
