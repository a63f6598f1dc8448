package main

import (
	"fmt"
	"hash/crc32"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"plinth/nbd/vsock"
)

// reconnectDelayDefault is longer than a restart, and shorter than a person waits
// before looking.
const reconnectDelayDefault = 10 * time.Minute

func qemuCommand() *cli.Command {
	return &cli.Command{
		Name: "qemu", Usage: "print the arguments that give a disk or snapshot to QEMU, such that it waits while plinth restarts", ArgsUsage: "DISK[@SNAPSHOT]",
		Flags: append(apiFlags()[:3:3], nbdFlag(), // the API's completes names
			&cli.DurationFlag{Name: "reconnect-delay", Value: reconnectDelayDefault, Usage: "how long requests wait for a server that is away, before they fail"},
			&cli.StringFlag{Name: "tls", Usage: "directory of ca-cert.pem, client-cert.pem and client-key.pem, for a server with TLS"},
		),
		Action: printQEMU, BashComplete: completeExports,
	}
}

func printQEMU(c *cli.Context) error {
	args, err := arguments(c, "DISK")
	if err != nil {
		return err
	}
	network, address, err := nbdAddress(c)
	if err != nil {
		return err
	}
	delay := c.Duration("reconnect-delay")
	if delay < time.Second {
		return fmt.Errorf("--reconnect-delay is at least 1s")
	}
	blockdev := qemuBlockdev(args[0], network, address, delay)
	if dir := c.String("tls"); dir != "" {
		if dir, err = filepath.Abs(dir); err != nil {
			return err
		}
		object := "tls-creds-x509,id=" + qemuTLS + ",endpoint=client,dir=" + strings.ReplaceAll(dir, ",", ",,")
		fmt.Printf("-object %s ", shellQuote(object))
		blockdev += ",tls-creds=" + qemuTLS
	}
	fmt.Println(qemuArgs(args[0], blockdev))
	return nil
}

// qemuTLS names the certificates that QEMU shows.
const qemuTLS = "plinth-tls"

// qemuArgs returns QEMU's arguments for a disk, as a shell reads them.
func qemuArgs(disk, blockdev string) string {
	return fmt.Sprintf("-blockdev %s -device virtio-blk-pci,drive=%s", shellQuote(blockdev), qemuNode(disk))
}

// qemuBlockdev returns the argument of -blockdev for a disk.
func qemuBlockdev(disk, network, address string, delay time.Duration) string {
	options := []string{"driver=nbd", "node-name=" + qemuNode(disk), "export=" + disk}
	if host, port, err := net.SplitHostPort(address); network == "tcp" && err == nil {
		if host == "" {
			host = "127.0.0.1"
		}
		options = append(options, "server.type=inet", "server.host="+host, "server.port="+port)
	} else if cid, port, err := vsock.Split(address); network == vsock.Network && err == nil {
		options = append(options, "server.type=vsock", fmt.Sprintf("server.cid=%d", cid), fmt.Sprintf("server.port=%d", port))
	} else {
		options = append(options, "server.type=unix", "server.path="+address)
	}
	for i := range options {
		options[i] = strings.ReplaceAll(options[i], ",", ",,") // as QEMU has a comma in a value
	}
	seconds := int64((delay + time.Second - 1) / time.Second)
	last := "discard=unmap"
	if strings.Contains(disk, "@") {
		last = "read-only=on"
	}
	return strings.Join(append(options, fmt.Sprintf("reconnect-delay=%d", seconds), last), ",")
}

// nodeBytesMax is QEMU's longest name of a node.
const nodeBytesMax = 31

// qemuNode names a disk as QEMU allows it. A disk's own name is that but for a
// letter in front and the length; long ones, and those of snapshots, differ in a
// hash.
func qemuNode(disk string) string {
	node := "plinth-" + strings.NewReplacer("@", "-", ",", "-", "=", "-").Replace(disk)
	if len(node) > nodeBytesMax || !strings.HasSuffix(node, disk) {
		sum := fmt.Sprintf("-%08x", crc32.ChecksumIEEE([]byte(disk)))
		node = node[:min(len(node), nodeBytesMax-len(sum))] + sum
	}
	return node
}

var plain = regexp.MustCompile(`^[A-Za-z0-9@%+=:,./_-]+$`)

// shellQuote returns text as one word of a shell.
func shellQuote(text string) string {
	if plain.MatchString(text) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
