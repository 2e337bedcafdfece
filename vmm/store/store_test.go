package store

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"banger/vmm"
)

var bg = context.Background()

func TestMain(m *testing.M) {
	if path := os.Getenv("BANGER_STORE_WRITER"); path != "" {
		writeForEver(path)
	}
	if path := os.Getenv("BANGER_STORE_READER"); path != "" {
		lockForEver(path)
	}
	os.Exit(m.Run())
}

// writeForEver inserts until it is killed, telling each serial that was acknowledged.
func writeForEver(path string) {
	s, err := Open(bg, path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var mu sync.Mutex
	for w := 0; w < 4; w++ {
		go func() {
			for i := 0; ; i++ {
				r := record(fmt.Sprintf("w%d-%d", w, i))
				if err := s.Insert(bg, r); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				mu.Lock()
				fmt.Println(r.Name)
				mu.Unlock()
			}
		}()
	}
	select {}
}

// lockForEver takes the read lock that any process which can open the database may have.
func lockForEver(path string) {
	f, err := os.Open(path)
	if err == nil {
		// PENDING_BYTE and all of SHARED_FIRST (sqlite.org/lockingv3.html).
		err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 0x40000000, Len: 512})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("locked")
	select {}
}

func record(name string) *vmm.Record {
	return &vmm.Record{ID: "id-" + name, Name: name, State: vmm.Stopped, Created: time.Unix(1700000000, 5),
		Config: vmm.Config{Image: "builtin", CPUs: 2, Memory: 1 << 27, Disk: 3, Cmdline: "a b", VMM: "qemu", Net: vmm.NetBridge,
			Autostart: true, IdleTimeout: vmm.NoLimit, StopTimeout: 10 * time.Second, Protected: true,
			Isolate: true, ExposeFS: true, Publish: "8080:80/tcp\n53:53/udp", AuthorizedKeys: "k"},
		Owner: vmm.Owner{UID: 1<<32 - 2, GID: 7, Mode: 0o755}, Error: "e", BootID: "b", Run: 3,
		Process: vmm.Process{PID: 9, StartTime: 1 << 40}}
}

func opened(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(bg, path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRecordsSurvive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "odd ?%#name.db")
	s := opened(t, path)
	r := record("web")
	if err := s.Insert(bg, r); err != nil {
		t.Fatal(err)
	}
	if r.Serial != 1 || !strings.HasPrefix(r.MAC, "02:") || len(r.MAC) != 17 {
		t.Fatalf("serial %d, mac %q", r.Serial, r.MAC)
	}
	r.Rebooting, r.Held = true, true
	r.Name, r.Started, r.StopBy = "site", time.Unix(1700000001, 0), time.Unix(1700000002, 3)
	if err := s.Update(bg, r); err != nil {
		t.Fatal(err)
	}
	if err := s.Insert(bg, record("other")); err != nil {
		t.Fatal(err)
	}
	clash := *r
	clash.Name = "other"
	if err := s.Update(bg, &clash); !errors.Is(err, vmm.ErrExists) {
		t.Fatalf("rename onto another: %v", err)
	}
	if err := s.Insert(bg, record("site")); !errors.Is(err, vmm.ErrExists) {
		t.Fatalf("name taken: %v", err)
	}
	if err := s.Delete(bg, 2); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(bg, 2); !errors.Is(err, vmm.ErrNotFound) {
		t.Fatalf("delete twice: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = opened(t, path)
	defer s.Close()
	got, err := s.Load(bg)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]vmm.Record{*r}, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Fatal(diff)
	}
	next := record("next")
	if err := s.Insert(bg, next); err != nil {
		t.Fatal(err)
	}
	if next.Serial <= 2 {
		t.Fatalf("serial %d was used before", next.Serial)
	}
}

func TestLeases(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	defer s.Close()
	prefix, gw := netip.MustParsePrefix("10.9.0.0/29"), netip.MustParseAddr("10.9.0.1")
	var recs []*vmm.Record
	for i := 0; i < 6; i++ {
		r := record("v" + strconv.Itoa(i))
		if err := s.Insert(bg, r); err != nil {
			t.Fatal(err)
		}
		recs = append(recs, r)
	}
	lease := func(i int, want string) {
		t.Helper()
		a, err := s.Lease(bg, recs[i].Serial, prefix, gw)
		if err != nil || a.String() != want {
			t.Fatalf("lease of %d: %v, %v; want %s", i, a, err, want)
		}
	}
	for i := 0; i < 5; i++ {
		lease(i, "10.9.0."+strconv.Itoa(i+2))
	}
	lease(2, "10.9.0.4")
	if _, err := s.Lease(bg, recs[5].Serial, prefix, gw); !errors.Is(err, vmm.ErrNoSpace) {
		t.Fatalf("full: %v", err)
	}
	if err := s.Delete(bg, recs[1].Serial); err != nil {
		t.Fatal(err)
	}
	lease(5, "10.9.0.3")
	if _, err := s.Lease(bg, recs[1].Serial, prefix, gw); !errors.Is(err, vmm.ErrNotFound) {
		t.Fatalf("lease of a removed VM: %v", err)
	}
	prefix, gw = netip.MustParsePrefix("10.8.0.0/24"), netip.MustParseAddr("10.8.0.2")
	lease(0, "10.8.0.1")
	lease(2, "10.8.0.3")
}

// TestGroupCommit holds the writer in one call until all others wait: they share the next commit,
// and the refused one of them leaves the others alone.
// SQLite's index of the log is not mapped from the disk: a page fault on a disk that is frozen would hold
// its thread, and Go, which waits for every thread before it collects garbage, all others.
func TestNothingIsMapped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := opened(t, path)
	defer s.Close()
	if err := s.Insert(bg, &vmm.Record{ID: "a", Name: "web"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + "-wal"); err != nil {
		t.Errorf("not in WAL mode: %v", err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(maps), path) {
		t.Errorf("%s is mapped:\n%s", path, maps)
	}
}

func TestGroupCommit(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	defer s.Close()
	before, _ := s.Counts()
	hold, held := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		_ = s.do(bg, func(context.Context, *writer) error { close(held); <-hold; return nil })
	}()
	<-held
	const n = 100
	errs := make([]error, n+1)
	for i := range errs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := record("v" + strconv.Itoa(i%n)) // the last takes the name of the first
			r.ID = strconv.Itoa(i)
			errs[i] = s.Insert(bg, r)
		}()
	}
	for len(s.ops) < n+1 {
		time.Sleep(time.Millisecond)
	}
	close(hold)
	wg.Wait()
	for i, err := range errs[1:n] {
		if err != nil {
			t.Errorf("insert %d: %v", i+1, err)
		}
	}
	if (errs[0] == nil) == (errs[n] == nil) {
		t.Errorf("of two with the same name: %v, %v", errs[0], errs[n])
	}
	commits, _ := s.Counts()
	if commits -= before; commits != 2 {
		t.Errorf("%d commits for the held call and the %d others, want 2", commits, n+1)
	}
	got, err := s.Load(bg)
	if err != nil || len(got) != n {
		t.Errorf("%d records, %v", len(got), err)
	}
}

func TestCancelledWaitStillWrites(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	defer s.Close()
	hold, held := make(chan struct{}), make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.do(bg, func(context.Context, *writer) error { close(held); <-hold; return nil })
	}()
	<-held
	ctx, cancel := context.WithCancel(bg)
	go func() {
		for len(s.ops) == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if err := s.Insert(ctx, record("web")); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(hold)
	<-done
	if got, err := s.Load(bg); err != nil || len(got) != 1 {
		t.Fatalf("%v, %v", got, err)
	}
}

func TestMigrations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	fixture, err := os.ReadFile("testdata/schema1.sql")
	if err != nil {
		t.Fatal(err)
	}
	raw(t, path, string(fixture))
	s := opened(t, path)
	got, err := s.Load(bg)
	if err != nil || len(got) != 1 || got[0].Name != "old" || got[0].Serial != 41 {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := s.Lease(bg, 41, netip.MustParsePrefix("10.0.0.0/24"), netip.MustParseAddr("10.0.0.1")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	raw(t, path, "PRAGMA user_version = 99")
	if _, err := Open(bg, path); err == nil || !strings.Contains(err.Error(), "newer banger") {
		t.Fatalf("newer schema: %v", err)
	}
}

func raw(t *testing.T, path, text string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(text); err != nil {
		t.Fatal(err)
	}
}

func TestFullDisk(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	defer s.Close()
	err := s.do(bg, func(ctx context.Context, w *writer) error {
		_, err := w.conn.ExecContext(ctx, "PRAGMA max_page_count = 1") // SQLITE_FULL, as a full disk gives
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < 200; i++ {
		r := record("v" + strconv.Itoa(i))
		r.Error = strings.Repeat("x", 4000)
		if err = s.Insert(bg, r); err != nil {
			break
		}
	}
	if !errors.Is(err, vmm.ErrNoSpace) {
		t.Fatalf("got %v", err)
	}
	if _, err := s.Load(bg); err != nil {
		t.Fatalf("after it: %v", err)
	}
}

// TestFailedRollback refuses one call of a group in a way that takes the others' savepoints with it.
func TestFailedRollback(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	defer s.Close()
	hold, held := make(chan struct{}), make(chan struct{})
	go func() { _ = s.do(bg, func(context.Context, *writer) error { close(held); <-hold; return nil }) }()
	<-held
	waiting := func(n int, call func() error) <-chan error {
		result := make(chan error, 1)
		go func() { result <- call() }()
		for len(s.ops) < n {
			time.Sleep(time.Millisecond)
		}
		return result
	}
	insert := func(name string) func() error { return func() error { return s.Insert(bg, record(name)) } }
	before := waiting(1, insert("before"))
	again := waiting(2, insert("before"))
	refused := waiting(3, func() error {
		return s.do(bg, func(ctx context.Context, w *writer) error {
			_, err := w.undo.ExecContext(ctx) // as SQLite does by itself when the disk is full
			return errors.Join(errors.New("refused"), err)
		})
	})
	after := waiting(4, insert("after"))
	close(hold)
	if err := <-refused; err == nil || err.Error() != "refused" {
		t.Errorf("the refused call: %v", err)
	}
	if err := <-again; !errors.Is(err, vmm.ErrExists) {
		t.Errorf("the call refused before: %v", err)
	}
	if err := errors.Join(<-before, <-after); err != nil {
		t.Errorf("the others: %v", err)
	}
	if got, err := s.Load(bg); err != nil || len(got) != 2 {
		t.Errorf("%d records are kept, %v", len(got), err)
	}
}

func TestDurableAfterKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	acked := map[string]bool{}
	for round := 0; round < 3; round++ {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		if round > 0 {
			s := opened(t, path)
			recs, err := s.Load(bg)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range recs {
				if err := s.Delete(bg, r.Serial); err != nil {
					t.Fatal(err)
				}
			}
			clear(acked)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		c := exec.Command(exe)
		c.Env = append(os.Environ(), "BANGER_STORE_WRITER="+path)
		c.Stderr = os.Stderr
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			acked[sc.Text()] = true
			if len(acked) == 50+round*37 {
				_ = c.Process.Kill()
			}
		}
		_ = c.Wait()
		s := opened(t, path)
		recs, err := s.Load(bg)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range recs {
			delete(acked, r.Name)
		}
		if len(acked) > 0 {
			t.Fatalf("acknowledged and lost: %v", acked)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConcurrent(t *testing.T) {
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	defer s.Close()
	prefix, gw := netip.MustParsePrefix("10.7.0.0/16"), netip.MustParseAddr("10.7.0.1")
	var wg sync.WaitGroup
	for w := 0; w < 16; w++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; i < 10; i++ {
				r := record(fmt.Sprintf("v%d-%d", w, i))
				if err := s.Insert(bg, r); err != nil {
					t.Error(err)
					return
				}
				if _, err := s.Lease(bg, r.Serial, prefix, gw); err != nil {
					t.Error(err)
				}
				if err := s.Update(bg, r); err != nil {
					t.Error(err)
				}
				if i%2 == 0 {
					if err := s.Delete(bg, r.Serial); err != nil {
						t.Error(err)
					}
				}
			}
		}()
	}
	wg.Wait()
	recs, err := s.Load(bg)
	if err != nil || len(recs) != 80 {
		t.Fatalf("%d records, %v", len(recs), err)
	}
	seen := map[netip.Addr]bool{}
	for _, r := range recs {
		if seen[r.Address] || !r.Address.IsValid() {
			t.Errorf("address %v of %s", r.Address, r.Name)
		}
		seen[r.Address] = true
	}
}

func BenchmarkTwoBareCommits(b *testing.B) {
	s := opened(b, filepath.Join(b.TempDir(), "db"))
	defer s.Close()
	w := make(chan *writer, 1)
	if err := s.do(bg, func(ctx context.Context, x *writer) error {
		_, err := x.conn.ExecContext(ctx, "CREATE TABLE bare (n INTEGER)")
		w <- x
		return err
	}); err != nil {
		b.Fatal(err)
	}
	conn := (<-w).conn // the writer sleeps: nobody calls the store
	stmt, err := conn.PrepareContext(bg, "INSERT INTO bare VALUES (1)")
	if err != nil {
		b.Fatal(err)
	}
	defer stmt.Close()
	b.ResetTimer()
	for i := 0; i < 2*b.N; i++ {
		if _, err := stmt.ExecContext(bg); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkInsertDelete(b *testing.B) {
	s := opened(b, filepath.Join(b.TempDir(), "db"))
	defer s.Close()
	r := record("web")
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		if err := s.Insert(bg, r); err != nil {
			b.Fatal(err)
		}
		if err := s.Delete(bg, r.Serial); err != nil {
			b.Fatal(err)
		}
	}
}

// TestPrivateFiles opens a database whose files an earlier version left readable, and some that another user may have put there.
func TestPrivateFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	s := opened(t, path)
	files := []string{path, path + "-wal"}
	for _, name := range files {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("new: %v, %v", info, err)
		}
		if err := os.Chmod(name, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.Insert(bg, record("web")), s.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+"-shm", nil, 0o644); err != nil { // of another program that read the database
		t.Fatal(err)
	}
	s = opened(t, path)
	for _, name := range append(files, path+"-shm") {
		if info, err := os.Stat(name); err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("of an earlier version: %v", info)
		}
	}
	if all, err := s.Load(bg); err != nil || len(all) != 1 {
		t.Errorf("%d records, %v", len(all), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(path, path+".copy"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(bg, path); err == nil || !strings.Contains(err.Error(), "2 names") {
		t.Errorf("with another name: %v", err)
	}
	if err := errors.Join(os.Remove(path), os.Symlink(path+".copy", path)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(bg, path); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("a symbolic link: %v", err)
	}
}

// TestLockedByAnother opens a database that another process has locked: a Store that could not write is none.
func TestLockedByAnother(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "banger.db")
	if err := opened(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "BANGER_STORE_READER="+path)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "locked\n" {
		t.Fatalf("%q, %v", line, err)
	}
	s, err := Open(bg, path)
	if err == nil {
		err = s.Insert(bg, record("web"))
		t.Fatalf("opened, and an insert gives: %v", err)
	}
	if want := fmt.Sprintf("it is locked by process %d (", cmd.Process.Pid); !errors.Is(err, vmm.ErrBusy) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

// TestLockIsKept has another process try to lock a database that is open.
func TestLockIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	s := opened(t, path)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "BANGER_STORE_READER="+path)
	if out, err := cmd.CombinedOutput(); err == nil || strings.Contains(string(out), "locked") {
		t.Errorf("another process has locked it: %s, %v", out, err)
	}
	if err := errors.Join(s.Insert(bg, record("web")), s.Close()); err != nil {
		t.Error(err)
	}
}

// TestNoSharedMemory opens a database twice: the index of its log is in no mapped file.
func TestNoSharedMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	for range 2 {
		s, err := Open(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		maps, err := os.ReadFile("/proc/self/maps")
		if err != nil || strings.Contains(string(maps), path+"-shm") {
			t.Errorf("the index is mapped (%v)", err)
		}
		if _, err := os.Stat(path + "-shm"); err == nil {
			t.Error("there is a file for the index")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
