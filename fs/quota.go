package fs

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"

	"banger/internal/value"
	"banger/vmm"
)

// A directory of quota/ has the serial quotaBit with a uid, or defaultQuota.
const defaultQuota = quotaBit | 1<<32

// noUID is that of no user: chown(2) has it for "unchanged".
const noUID = math.MaxUint32

// defaultWord is the name of the directory of all uids without a rule of their own. Written to a
// file it removes a rule.
const defaultWord = "default"

func quotaList(r *request) []dirent {
	uids := r.server.o.Manager.QuotaUIDs()
	list := make([]dirent, 1, 1+len(uids))
	list[0] = dirent{name: defaultWord, serial: defaultQuota}
	for _, uid := range uids {
		list = append(list, quotaEntry(uid))
	}
	return list
}

// quotaFind finds the directory of every uid for root, so that a rule needs no mkdir. Others find
// their own and those that are listed: the kernel and the daemon keep something of each name that
// was found, and there are 4 billion.
func quotaFind(r *request, name string) (dirent, bool) {
	if name == defaultWord {
		return dirent{name: name, serial: defaultQuota}, true
	}
	n, err := strconv.ParseUint(name, 10, 32)
	uid := uint32(n)
	e := quotaEntry(uid)
	if err != nil || n == noUID || e.name != name {
		return e, false
	}
	return e, r.isRoot() || uid == r.uid || r.server.o.Manager.HasQuota(uid)
}

func quotaEntry(uid uint32) dirent {
	return dirent{name: strconv.FormatUint(uint64(uid), 10), serial: quotaBit | uint64(uid)}
}

// quotaName returns the name of the request's directory in quota/.
func quotaName(r *request) string {
	if r.quota == defaultQuota {
		return defaultWord
	}
	return quotaEntry(uint32(r.quota)).name
}

// quotaUID returns the uid of the request's directory in quota/, or vmm.EveryUID.
func (r *request) quotaUID() int64 {
	if r.quota == defaultQuota {
		return vmm.EveryUID
	}
	return int64(r.quota &^ quotaBit)
}

func quotaFiles() []file {
	var files []file
	for _, q := range vmm.Quotas() {
		files = append(files, file{name: q.String(), mode: 0o644, doc: q.Help(), attr: quotaAttr,
			show:  func(r *request) ([]byte, error) { return quotaShow(r, q) },
			store: func(w *writeRequest, text string) error { return quotaStore(w, q, text) },
			told:  asWritten,
		})
	}
	return files
}

// quotaAttr leaves writing to the daemon's own user: the group makes VMs, but no rules.
func quotaAttr(r *request, a *attributes) {
	a.mode, a.gid = r.file.mode, r.server.gid
}

func quotaShow(r *request, q vmm.Quota) ([]byte, error) {
	uid := r.quotaUID()
	if uid == vmm.EveryUID {
		return line(quotaText(r.server.o.Manager.DefaultQuota(q)))
	}
	used, most := r.server.o.Manager.Quota(uint32(uid), q)
	return line(strconv.FormatInt(used, 10) + " " + quotaText(most))
}

func quotaText(most int64) string {
	if most == vmm.NoQuota {
		return value.Max
	}
	return strconv.FormatInt(most, 10)
}

// quotaStore sets a limit. It ignores the use before it, so that what was read can be written.
func quotaStore(w *writeRequest, q vmm.Quota, text string) error {
	uid := w.quotaUID()
	most, err := parseQuota(q, text, uid != vmm.EveryUID)
	switch {
	case !w.isRoot():
		err = fmt.Errorf("only root sets quotas: %w", vmm.ErrNotPermitted)
	case text == defaultWord:
		err = w.detached(func(ctx context.Context) error {
			return w.server.o.Manager.DropQuota(ctx, uid, q)
		})
	case err == nil:
		err = w.detached(func(ctx context.Context) error {
			return w.server.o.Manager.SetQuota(ctx, uid, q, most)
		})
	}
	if err != nil {
		return fmt.Errorf("cannot set %s of %s: %w", q, w.owner(), err)
	}
	return nil
}

// parseQuota reads a limit, after a use if there may be one.
func parseQuota(q vmm.Quota, text string, used bool) (int64, error) {
	words := strings.Fields(text)
	if used && len(words) == 2 {
		if _, err := value.ParseUint(words[0], math.MaxInt64); err != nil {
			return 0, err
		}
		words = words[1:]
	}
	if len(words) != 1 {
		return 0, fmt.Errorf("%.64q is not a number, max or default: %w", text, vmm.ErrInvalid)
	}
	return q.Parse(words[0])
}
