"""What stands in for GPUs: model servers, the device table they hold memory in, a show."""
