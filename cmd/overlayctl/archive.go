package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/controlplane/api"
)

func (a *app) backupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup FILE|-",
		Short: "Save the cluster's state in a file",
		Long: `backup saves the state of the cluster, with a checksum, in a file that only its
owner can read, or writes it to the standard output. A file that is there is
replaced once the backup is complete. It must be run on a manager.

It holds the key of the cluster's CA and the join tokens: keep it as you keep a
password.`,
		Args:              exactly("the name of a file, or -"),
		ValidArgsFunction: positions(completeFile()),
		RunE: func(cmd *cobra.Command, args []string) error {
			client := api.NewClient(a.socket)
			defer client.Close()
			if args[0] == "-" {
				return client.BackupTo(cmd.Context(), a.stdout)
			}
			return a.backup(cmd.Context(), client, args[0])
		},
	}
	a.addOutput(cmd)
	return cmd
}

// backup writes a backup into a file, which is there as a whole or as it was before.
func (a *app) backup(ctx context.Context, c *api.Client, file string) (err error) {
	if st, err := os.Stat(file); err == nil && !st.Mode().IsRegular() {
		return fmt.Errorf("write the backup: %s is not a regular file: choose another name, or - for the standard output", file)
	}
	f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			if rerr := os.Remove(f.Name()); !errors.Is(rerr, fs.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}
	}()
	sum := sha256.New()
	size := &counter{}
	if err := c.BackupTo(ctx, io.MultiWriter(f, sum, size)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	digest := hex.EncodeToString(sum.Sum(nil))
	if a.output == formatJSON {
		return printValue(a.stdout, struct {
			File   string `json:"file"`
			Bytes  uint64 `json:"bytes,string"` // as the API writes 64 bits
			SHA256 string `json:"sha256"`
		}{file, size.n, digest})
	}
	_, err = fmt.Fprintf(a.stdout, "%s bytes, SHA-256 %s, are in %s.\nIt holds the cluster's keys: keep it as you keep a password.\n", count(size.n), digest, file)
	return err
}

// counter counts the bytes that are written to it.
type counter struct{ n uint64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += uint64(len(p))
	return len(p), nil
}

func (a *app) restoreCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore FILE|-",
		Short: "Bring back the cluster's state from a backup",
		Long: `restore replaces the state of the whole cluster by what backup saved. It must be
run on the manager that leads, which overlayctl node ls shows.

Nothing is changed unless the checksum is right.`,
		Args:              exactly("the name of a file, or -"),
		ValidArgsFunction: positions(completeFile()),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := a.stdin
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("read the backup: %w", err)
				}
				defer f.Close()
				in = f
			}
			client := api.NewClient(a.socket)
			defer client.Close()
			res, err := client.RestoreFrom(cmd.Context(), in)
			if err != nil {
				return err
			}
			return a.answer(res, "The cluster %s is as it was at index %s.", res.ClusterId, count(res.Index))
		},
	}
	a.addOutput(cmd)
	return cmd
}
