package integration

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// lie is a script that a user runs in the directory fs of a VM whose files lie.
type lie struct {
	script string
	within time.Duration
	prints string // a regular expression for all output but the last newline
}

// hostileAnswer bounds a request about a guest's file, hostileData one about its content. Both are
// the bounds of docs/files.md and 2 s more for a busy machine.
const (
	hostileAnswer = 3*time.Second + 2*time.Second
	hostileData   = 10*time.Second + 2*time.Second
)

// lies use the files of testdata/hostile/files.go, which describes each.
var lies = []lie{
	{`
ls -a names | grep -x -e '\.*' -e good -e twice | tr '\n' ,; cat names/good names/twice
find names -type f -name '*[de]' | wc -l; ls names/a/b names/etc 2>&1 | wc -l`,
		hostileAnswer, `\.,\.\.,good,twice,twice,some\nsome\n3\n2`},
	{`
stat names/$(printf 'x%.0s' $(seq 255)); stat names/$(printf 'x%.0s' $(seq 256))`,
		hostileAnswer, `(?s).*No such file.*File name too long`},
	{`
rm -r names; echo $?; mkdir $T/names; cp -r names/. $T/names 2> /dev/null
banger cp hostile:/names/. $T/names 2> /dev/null; ls $T/names | grep -x -e good -e twice`,
		hostileAnswer, "0\ngood\ntwice"},

	{`
cat links/shadow; cat links/up; cat links/root/etc/passwd; cat links/self; cp -rL links $T/links
grep -r root links; readlink links/shadow links/up`,
		hostileAnswer,
		`(cat: links/\S+: Too many levels.*\n){4}(?s:.*)/etc/shadow\n(\.\./)*etc/shadow`},
	{`
readlink links/long; echo $?; readlink links/none; echo $?
banger cp hostile:/links $T/copied 2>&1 | grep -c 'cannot copy'; find $T/copied -type l | wc -l`,
		hostileAnswer, "1\n1\n2\n4"},
	{`
banger cp hostile:/links/shadow $T/shadow; stat -c %F $T/shadow
banger cp hostile:/links/shadow/x $T; banger cp hostile:/links/root/nodes/suid $T
stat -c %a $T/suid; cat $T/suid`,
		hostileAnswer,
		"symbolic link\nbanger: there is no hostile:/links/shadow/x\n777\n#!/bin/sh\necho evil"},

	{`
nodes/suid; cat nodes/null; cat nodes/disk; cat nodes/fifo; echo x > nodes/null
ls nodes | tr '\n' ,`,
		hostileAnswer,
		"(?s)(.*Permission denied\n){3}.*No such device or address\n.*Permission denied\n" +
			"disk,fifo,null,suid,"},
	{`
chmod 4755 nodes/suid; sh -c 'exec nodes/suid'
python3 -c 'import mmap, os
fd = os.open("nodes/suid", os.O_RDONLY)
mmap.mmap(fd, 20, prot=mmap.PROT_EXEC | mmap.PROT_READ, flags=mmap.MAP_PRIVATE)' 2>&1 | tail -1`,
		hostileAnswer, "(?s).*Permission denied.*(No such device|not permitted)"},

	{`
for i in $(seq 20); do stat -c %F types/thing; cat types/thing; ls types; done > $T/types 2>&1
grep -c . $T/types; find types > /dev/null 2>&1; rm -rf types 2> /dev/null
cp -r types $T 2> /dev/null; banger cp hostile:/types $T/t 2>/dev/null
du -s types > /dev/null 2>&1; echo over`,
		hostileData, `\d+\nover`},
	{`
stat -c '%s' sizes/huge sizes/half sizes/odd; cat sizes/*
dd if=sizes/huge bs=1M skip=1000000 count=1 status=none; tail -c 5 sizes/odd; cp sizes/odd $T
df --output=size . | tail -1 | grep -c .`,
		hostileData,
		"9223372036854775807\n9223372036854775807\n\\d+\nsome\nsome\nsome\n(?s:.*)1"},

	{`
cat reads/slow; echo; cat reads/nothing; cat reads/long; cat reads/backwards
head -c 5000000 reads/endless | wc -c`,
		hostileData, "x{20}\n(cat: reads/(long|backwards): Input/output error\n){2}5000000"},
	{`
timeout 1 cp reads/endless $T/endless; echo $?; rm $T/endless`,
		hostileAnswer, "124"},
	{`
python3 -c 'import os
fd = os.open("holes/old", os.O_RDONLY)
print(os.lseek(fd, 5, os.SEEK_DATA), os.lseek(fd, 5, os.SEEK_HOLE))'
banger cp hostile:/holes/old $T; stat -c '%s %b' $T/old; head -n 1 $T/old`,
		hostileData, "5 1048576\n1048576 8\nsome"},
	{`
for f in alternate beyond negative back status; do
	banger cp hostile:/holes/$f $T; stat -c '%s %b' $T/$f
done 2>&1 | tr '\n' ,; timeout -k 1 1 cp holes/vast $T/cp 2> /dev/null
test $? -le 124 || echo killed; timeout -k 1 1 banger cp hostile:/holes/vast $T; echo $?`,
		2 * hostileData, `4194304 0,(1048576 0,){4}124`},

	{`
rm -rf undead; echo $?; rm undead/file; rm undead/file; rmdir undead/dir
mv undead/file undead/dir; ls undead | tr '\n' ,`,
		hostileAnswer, "0\ndir,file,"},
	{`
find deep 2> /dev/null | tail -1 | wc -c; rm -r deep 2> /dev/null; ls -R deep > /dev/null 2>&1
du -s deep 2> /dev/null | wc -l`,
		hostileData, `4\d\d\d\n1`},
	{`
timeout 1 ls endless > /dev/null; echo $?; timeout -s KILL 1 find endless > /dev/null; echo $?
ls empty; ls endless/name1 empty/x`,
		2 * hostileAnswer, `(?s)124\n.*\n.*timed out.*`},

	{`
for f in nobody twice kind many cut gone empty; do cat packets/$f; done; ls packets | wc -l`,
		hostileData,
		`(cat: packets/\S+: (Input/output error|No such device or address|Is a directory)\n){7}12`},
	{`
cat packets/gigabyte; cat packets/flood; cat names/good`,
		hostileAnswer, "(cat: packets/\\S+: Input/output error\n){2}some"},
	{`
cat packets/half; sleep 1.1; cat names/good`,
		hostileAnswer + 2*time.Second, "cat: packets/half: Connection timed out\nsome"},
	{`
cat packets/drip; sleep 1.1; cat names/good`,
		hostileAnswer + 2*time.Second, "cat: packets/drip: Connection timed out\nsome"},
	{`
for i in 1 2 3 4 5 6 7 8; do (cat packets/silent 2>&1 | grep -o "timed out") & done
stat -c %n names; wait`,
		hostileAnswer, "names\n(timed out\n?){8}"},
}

// hostileFiles uses the files of a guest that lies about them. No script hangs, and none opens or
// runs a file of the host.
func hostileFiles(t *testing.T, d *daemon) {
	dir := t.TempDir()
	root := d.path("hostile", "fs")
	if text, err := read(filepath.Join(root, "names", "good")); err != nil || text != "some" {
		t.Fatalf("the guest's files are not there: %q, %v", text, err)
	}
	before := d.footprint(t)
	for _, l := range lies {
		ctx, cancel := context.WithTimeout(context.Background(), l.within)
		cmd := exec.CommandContext(ctx, "bash", "-c", l.script)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "LC_ALL=C", "T="+dir, "BANGER_MOUNT="+d.mount,
			"PATH="+bin+":"+os.Getenv("PATH"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = 2 * time.Second
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		began := time.Now()
		err := cmd.Run()
		late := ctx.Err() != nil
		cancel()
		t.Logf("%.1f s: %.60s", time.Since(began).Seconds(), strings.TrimSpace(l.script))
		switch text := strings.TrimSuffix(out.String(), "\n"); {
		case errors.Is(err, exec.ErrWaitDelay):
			t.Fatalf("%s\ncannot be killed: %v, %.2000s", l.script, err, text)
		case late:
			t.Errorf("%s\ndoes not end in %v: %.2000s", l.script, l.within, text)
		case !regexp.MustCompile("^(?:" + l.prints + ")$").MatchString(text),
			strings.Contains(text, "root:"):
			t.Errorf("%s\nprints %q, not %q", l.script, text, l.prints)
		}
	}
	d.settled(t, before)
}
