package fs

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"banger/internal/printable"
	"banger/internal/value"
	"banger/vmm"
)

func imagesList(r *request) []dirent {
	infos := r.server.o.Images.Infos()
	list := make([]dirent, len(infos))
	for i := range infos {
		list[i] = dirent{name: infos[i].Name, serial: imageBit | infos[i].Number}
	}
	return list
}

func imagesFind(r *request, name string) (dirent, bool) {
	for _, i := range r.server.o.Images.Infos() {
		if i.Name == name {
			return dirent{name: name, serial: imageBit | i.Number}, true
		}
	}
	return dirent{}, false
}

func imagesName(r *request) string {
	i, _ := r.server.o.Images.Info(r.image)
	return i.Name
}

func imageFiles() []file {
	type info = vmm.ImageInfo
	image := func(name, doc string, text func(*info) string) file {
		return file{name: name, mode: 0o444, doc: doc, show: func(r *request) ([]byte, error) {
			i, ok := r.server.o.Images.Info(r.image)
			if !ok {
				return nil, vmm.ErrNotFound
			}
			return line(text(&i))
		}}
	}
	// ready returns a row that is empty until the image is ready.
	ready := func(name, doc string, text func(*info) string) file {
		return image(name, doc, func(i *info) string {
			if i.Status != vmm.ImageReady {
				return ""
			}
			return text(i)
		})
	}
	source := image("source", "what it is built from; writing builds it",
		func(i *info) string { return sentence(i.Source) })
	source.mode, source.store, source.flags = 0o664, sourceStore, storesPaths
	source.told = asWritten
	status := image("status", "empty, building PERCENT, ready or failed REASON", imageStatus)
	status.watch = onEvent(vmm.EventImage)
	return []file{
		helpFile(0o444),
		source,
		status,
		image("progress", "of a build: percent, and the bytes that are fetched or copied",
			imageProgress),
		image("error", "the last refusal of a write in one sentence",
			func(i *info) string { return sentence(i.Error) }),
		ready("size", "bytes", func(i *info) string { return strconv.FormatInt(i.Size, 10) }),
		ready("digest", "of its content", func(i *info) string { return i.Digest }),
		ready("kernel", "the kernel's file", func(i *info) string { return i.Kernel }),
		ready("cmdline", "the kernel's command line", func(i *info) string { return i.Cmdline }),
		ready("memory", "least bytes of memory",
			func(i *info) string { return strconv.FormatInt(i.Memory, 10) }),
		ready("exposed", "ports that its author exposes, one per line, a hint",
			func(i *info) string { return sentences(i.Exposed) }),
		ready("healthcheck", "its author's check of its program, as JSON",
			func(i *info) string { return printable.Message(i.Healthcheck) }),
		image("created", "Unix seconds",
			func(i *info) string { return value.FormatTime(i.Created) }),
		{name: "used_by", mode: 0o444, doc: "VM names, one per line", show: usedByShow},
		{name: "wait", mode: 0o555, kind: hidden, doc: "files that block", files: []file{
			{name: "ready", mode: 0o444, doc: "blocks until it is so", open: waitImage},
		}},
	}
}

// sentences returns untrusted strings as lines.
func sentences(all []string) string {
	var lines []string
	for _, s := range all {
		lines = append(lines, sentence(s))
	}
	return strings.Join(lines, "\n")
}

func usedByShow(r *request) ([]byte, error) {
	i, ok := r.server.o.Images.Info(r.image)
	if !ok {
		return nil, vmm.ErrNotFound
	}
	return line(strings.Join(r.server.o.Manager.ImageUsers(i.Name), "\n"))
}

func imageStatus(i *vmm.ImageInfo) string {
	switch i.Status {
	case vmm.ImageBuilding:
		return fmt.Sprintf("%s %d", i.Status, i.Percent)
	case vmm.ImageFailed:
		return string(i.Status) + " " + sentence(i.Reason)
	}
	return string(i.Status)
}

// imageProgress has the bytes in steps that count them only.
func imageProgress(i *vmm.ImageInfo) string {
	if i.Status != vmm.ImageBuilding {
		return ""
	}
	pairs := []pair{{key: "percent", value: i.Percent}}
	if i.Moved.Total > 0 {
		pairs = append(pairs, pair{key: "bytes", value: i.Moved.Bytes},
			pair{key: "total_bytes", value: i.Moved.Total})
	}
	return strings.TrimSuffix(string(flat(pairs)), "\n")
}

func imagesMkdir(r *request, name string, owner vmm.Owner) error {
	return r.detached(func(ctx context.Context) error {
		_, err := r.server.o.Images.Create(ctx, name, owner)
		return err
	})
}

func imagesRmdir(r *request, name string) error {
	mayDelete := r.mayDelete()
	return r.detached(func(ctx context.Context) error {
		return r.server.o.Images.Remove(ctx, name, mayDelete)
	})
}

func sourceStore(w *writeRequest, text string) error {
	w.opener.use() // the build goes on after the write
	return w.detached(func(ctx context.Context) error {
		defer w.opener.release()
		return w.server.o.Images.Build(ctx, w.image, text, *w.opener.Caller)
	})
}

func blobsShow(r *request) ([]byte, error) {
	c, err := r.server.o.Images.Blobs()
	if err != nil {
		return nil, err
	}
	return flat([]pair{
		{key: "files", value: c.Files}, {key: "bytes", value: c.Bytes},
		{key: "unused_bytes", value: c.UnusedBytes},
	}), nil
}

func blobsStore(w *writeRequest, text string) error {
	if text != "gc" {
		return fmt.Errorf("%.64q is not a command; write gc: %w", text, vmm.ErrInvalid)
	}
	return w.detached(w.server.o.Images.Collect)
}
